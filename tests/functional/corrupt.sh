#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# One bit of what the source sends is flipped on its way, in hellos, messages, packets and payloads: no migration
# completes with other data than the source's, and none hangs. See `disturbed`.
. "$(dirname "$0")/functions.sh"

# More than fail here, so that none makes way before it was looked at.
pair -o timeout=5,max-migrations=1024,max-peer-migrations=1024
make_disturbed
remember_resources

corrupt() { disturbed "corrupt${1//[=+]/-}" "faulty:corrupt=$1:$uri"; }

faults=($(scaled "1 9 11 30 57 312 313 320" "9 57 320"))
# On the main channel each field of each message; 32 bytes of header are followed by a body.
for ((n = 321; n < 700; n += $(scaled 3 30))); do faults+=("$n+only=0"); done
for ((n = 700; n < 1100; n += $(scaled 17 70))); do faults+=("$n+only=0"); done
# On a data channel each field of the first packet's header, and payloads.
for ((n = 321; n < 385; n += $(scaled 4 13))); do faults+=("$n+only=1"); done
faults+=($(scaled "400+only=1 16000+only=2 20000+only=1 20000+only=2 100000 150000 190000" "400+only=1 100000"))
share 8 corrupt "${faults[@]}"
say "$(sort states | uniq -c | xargs echo) of ${#faults[@]}"
grep -q failed states
forget_all
same_resources
