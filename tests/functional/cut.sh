#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The connections of a small migration are cut after N bytes, for many N from the first byte of a hello to past the
# end: source and destination agree on what became of it. See `disturbed`.
. "$(dirname "$0")/functions.sh"

# More than fail here, so that none makes way before it was looked at.
pair -o timeout=5,max-migrations=1024,max-peer-migrations=1024
make_disturbed
remember_resources

cut() { disturbed "cut${1//[=+]/-}" "faulty:cut=$1:$uri"; }

# All connections, only the main one, only one of the data channels.
faults=($(scaled "1 2 319 320 321 400 639 640" "1 320 640"))
for ((n = 641; n < 2600; n += $(scaled 130 400))); do faults+=($n); done
faults+=($(scaled "4000 20000 33000 66000 100000 140000 180000 240000 400000" "20000 140000 400000"))
for ((n = 641; n < 1400; n += $(scaled 16 100))); do faults+=("$n+only=0"); done
for ((n = 1400; n < 2600; n += $(scaled 150 300))); do faults+=("$n+only=0"); done
for ((n = 641; n < 300000; n = n * 2 - 1)); do faults+=("$n+only=$((n / 2 % 2 + 1))"); done
share 8 cut "${faults[@]}"
say "$(sort states | uniq -c | xargs echo) of ${#faults[@]}"
grep -q failed states
grep -q completed states
forget_all
same_resources
