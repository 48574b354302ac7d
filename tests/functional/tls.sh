#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# TLS: whatever is sent over it arrives, nobody on the way can read it, and whoever is not meant is refused, with a sentence
# on both sides. What OpenSSL is asked for in detail is in tests/unit/test-tls.c.
export MIGFS_TEST_TLS= # the test says itself what goes by TLS
. "$(dirname "$0")/functions.sh"
requires openssl
"$MIGFS" -V | grep -q 'with TLS' || skip "this migfs is built without TLS"
helper tap && tap=$helper
make=$root/examples/make-certificates

"$make" ca >make.log
"$make" other >>make.log
"$make" ca dst localhost.example 127.0.0.1 >>make.log
"$make" ca src source.example >>make.log
mkdir certificates
mv dst src certificates/
c=$dir/certificates

# listens NAME OPTION...: a destination with these options; sets $uri
listens() {
	local name=$1
	shift
	migfs "$name" "$@"
	uri=$(sed -n 's/^migfs: listening at //p' "$name.log" | tail -n 1)
}

# will_not PATTERN OPTION...: the daemon does not start, and says why
will_not() {
	local pattern=$1 got=0
	shift
	mkdir -p mnt
	limited "$MIGFS" -f "$@" mnt >said 2>&1 || got=$?
	[ $got = 1 ] || [ $got = 2 ] || fail "migfs $*: status $got: $(cat said)"
	grep -qE -- "$pattern" said || fail "migfs $*: says '$(cat said)', not '$pattern'"
}

say "the start of the daemon"
for where in 0.0.0.0 "[::]" ""; do
	will_not 'without TLS .*tls=DIR.*insecure' -o "listen=tcp:$where:0"
done
will_not 'without TLS' -o "listen=faulty:short=1:tcp:0.0.0.0:0"
will_not 'no TLS.*insecure|built without RDMA' -o "listen=rdma:0.0.0.0:0,tls=$c/dst"
will_not "nowhere: No such file" -o "tls=$dir/nowhere"
will_not "nowhere: No such file" -o "tls-psk=$dir/nowhere"
will_not 'exclude each other' -o "tls=$c/dst,tls-psk=make.log"
will_not 'tls-authz has no effect' -o "tls-authz=*"
will_not 'line 1 is not USER:HEXKEY' -o "tls-psk=make.log"
for file in ca-cert.pem server-cert.pem server-key.pem; do
	cp -r "$c/dst" lacking
	rm "lacking/$file"
	will_not "$file" -o "listen=tcp:127.0.0.1:0,tls=lacking"
	echo nonsense >"lacking/$file"
	will_not "$file: no " -o "listen=tcp:127.0.0.1:0,tls=lacking"
	rm -r lacking
done
mkdir lacking
cp "$c"/dst/{ca-cert,client-cert,client-key}.pem lacking
will_not 'needs .*server-cert.pem' -o "listen=tcp:127.0.0.1:0,tls=lacking"
rm -r lacking
listens any -o "listen=tcp:0.0.0.0:0,insecure"
unmount any
listens any -o "listen=tcp:0.0.0.0:0,tls=$c/dst"
unmount any

say "everything, over TLS"
MARK=this-is-what-nobody-may-read-0123456789
random image 9M
for at in 0 100000 5000000; do printf %s "$MARK" | overwrite /dev/stdin image bs=1 seek=$at; done
make_devices
printf %s "$MARK" | overwrite /dev/stdin device3 bs=1 seek=7

# tapped: a relay in front of $uri, to which $uri then leads; all that goes over it is in the file taken
tapped() {
	rm -f taken tap.in tap.out
	mkfifo tap.in
	direct=$uri
	"$tap" "${uri##*:}" taken <tap.in >tap.out &
	exec {tap_in}>tap.in
	eventually "the relay listens" test -s tap.out
	uri=tcp:127.0.0.1:$(cat tap.out)
}
untap() {
	uri=$direct
	exec {tap_in}>&-
	wait $!
}

# move NAME SETTING=VALUE...: a whole migration of the image and the devices, pushed; with ram-source=, by reference
move() {
	local name=$1 setting pushed=yes
	shift
	outgoing "$name" 4
	for setting; do
		expect ok write "src/$name/${setting%%=*}" "${setting#*=}"
		[ "${setting%%=*}" != ram-source ] || pushed=
	done
	[ -z $pushed ] || truncate -s 9M "src/$name/ram"
	tell "src/$name" start
	write_devices "src/$name"
	if [ -n "$pushed" ]; then
		overwrite image "src/$name/ram" bs=300K
	else
		head -c 288 /dev/zero | tr '\0' '\377' >"src/$name/dirty"
	fi
	await_devices
	tell "src/$name" sync
	tell "src/$name" complete
	reaches "dst/$name" completed
	same image "dst/$name/ram"
	compare_devices "dst/$name"
}
ways=(
	"pushed"
	"zstd compression=zstd"
	"checked checksum=on"
	"apart device-channels=2"
	"referred ram-source=$dir/image"
	"packed ram-source=$dir/image compression=zstd"
	"verified ram-source=$dir/image verify=on"
	"compared ram-source=$dir/image dirty-tracking=compare"
)
move_all() {
	local way
	for way in "${ways[@]}"; do
		# shellcheck disable=SC2086
		move $way
	done
}

listens dst -o "listen=tcp:127.0.0.1:0,tls=$c/dst"
migfs src -o "tls=$c/src"
tapped
move_all
expect_status src/pushed tls = on
expect_status src/pushed peer-identity = CN=localhost.example
expect_status dst/pushed peer-identity = CN=source.example
expect_status src/pushed not-with-tls = "zero-copy splice"
untap
[ "$(stat -c %s taken)" -gt 50000000 ] || fail "the relay has seen nothing"
for word in "$MARK" pushed referred device3 migfs; do
	not grep -qaF "$word" taken
done
say "what TLS rules out is refused by name"
for setting in zero-copy=require splice=on; do
	outgoing "vm-$setting"
	expect ok write "src/vm-$setting/${setting%%=*}" "${setting#*=}"
	refused EOPNOTSUPP "src/vm-$setting/error" "${setting%%=*} is .*TLS" write "src/vm-$setting/control" start
done
forget src/* dst/*
unmount dst
unmount src

say "without TLS the relay sees all"
listens dst -o listen=tcp:127.0.0.1:0
migfs src
tapped
move pushed
expect_status src/pushed tls = off
untap
for word in "$MARK" pushed device3; do
	grep -qaF "$word" taken || fail "'$word' is not in what was sent"
done
unmount dst
unmount src

say "whoever is not meant"
# meets SOURCE-OPTIONS DESTINATION-OPTIONS SOURCE-PATTERN DESTINATION-PATTERN [SETTING=VALUE]: `start` is refused
meets() {
	listens dst -o "listen=tcp:127.0.0.1:0$2"
	migfs src ${1:+-o "$1"}
	outgoing vm
	[ $# -lt 5 ] || expect ok write "src/vm/${5%%=*}" "${5#*=}"
	attempt write src/vm/control start
	[ "$got" != ok ] || fail "it has begun"
	[[ $(cat src/vm/error) =~ $3 ]] || fail "the source says '$(cat src/vm/error)', not '$3'"
	eventually "the destination says '$4'" grep -qE -- "$4" dst.log
	is_in src/vm failed
	[ ! -e dst/vm ] || fail "the destination has it"
	unmount dst
	unmount src
	rm dst.log src.log
}
none="the peer does not speak TLS"
meets "" ",tls=$c/dst" "this destination takes TLS alone" "$none"
meets "tls=$c/src" "" "$none" "the peer speaks TLS, and this daemon has no"
meets "tls=$c/src" ",tls=$c/dst" "is not one of 'elsewhere.example'" "refuses this side's certificate" tls-hostname=elsewhere.example

# What openssl x509 cannot: dates of one's own.
dated() { # DIR SIDE FROM UNTIL
	cp -r "$c/${1##*-}" "$1"
	openssl req -new -key "$1/$2-key.pem" -subj /CN=127.0.0.1 -out request 2>/dev/null
	printf '%s\n' "[ca]" default_ca=d "[d]" database=index new_certs_dir=. serial=serial default_md=sha256 policy=p \
		certificate="$dir/ca/ca-cert.pem" private_key="$dir/ca/ca-key.pem" unique_subject=no "[p]" commonName=supplied >ca.conf
	: >index
	openssl rand -hex 8 >serial
	openssl ca -config ca.conf -batch -notext -in request -out "$1/$2-cert.pem" -startdate "$3" -enddate "$4" 2>openssl.log ||
		fail "openssl ca: $(cat openssl.log)"
}
dated expired-src client 20200101000000Z 20210101000000Z
dated early-src client 20980101000000Z 20990101000000Z
dated expired-dst server 20200101000000Z 20210101000000Z
dated early-dst server 20980101000000Z 20990101000000Z
meets "tls=expired-src" ",tls=$c/dst" "refuses this side's certificate: it has expired" "the peer's certificate has expired"
meets "tls=early-src" ",tls=$c/dst" "refuses this side's certificate: not yet valid" "is not yet valid"
meets "tls=$c/src" ",tls=expired-dst" "the peer's certificate has expired" "it has expired"
meets "tls=$c/src" ",tls=early-dst" "is not yet valid" "not yet valid"

"$make" other foreign 127.0.0.1 >>make.log
cp "$dir/ca/ca-cert.pem" foreign/
meets "tls=foreign" ",tls=$c/dst" "its CA is not the peer's" "not signed by a CA of ca-cert.pem"
meets "tls=$c/src" ",tls=foreign" "not signed by a CA of ca-cert.pem" "its CA is not the peer's"

"$make" ca revoked 127.0.0.1 >>make.log
"$make" ca revoke revoked >>make.log
cp -r "$c/dst" strict-dst
cp -r "$c/src" strict-src
cp ca/ca-crl.pem strict-dst/
cp ca/ca-crl.pem strict-src/
meets "tls=revoked" ",tls=strict-dst" "it has been revoked" "the peer's certificate has been revoked"
meets "tls=strict-src" ",tls=revoked" "the peer's certificate has been revoked" "it has been revoked"
echo 01 >crlnumber
printf '%s\n' "[ca]" default_ca=d "[d]" database=index crlnumber=crlnumber default_md=sha256 \
	certificate="$dir/ca/ca-cert.pem" private_key="$dir/ca/ca-key.pem" >crl.conf
openssl ca -config crl.conf -gencrl -crl_lastupdate 20200101000000Z -crl_nextupdate 20200102000000Z -out strict-dst/ca-crl.pem 2>openssl.log ||
	fail "openssl ca: $(cat openssl.log)"
meets "tls=$c/src" ",tls=strict-dst" "it has expired, or the peer's ca-crl.pem has" "cannot be said: ca-crl.pem: CRL has expired"

cp -r "$c/dst" only-server
rm only-server/client-*
meets "tls=only-server" ",tls=$c/dst" "there is no client-cert.pem" "closed the connection in the TLS handshake"

meets "tls=$c/src" ",tls=$c/dst,tls-authz=nobody:CN=other.*" "'CN=source.example' is not let in here" "refused: 'CN=source.example' is not let in"

"$make" psk keys
"$make" psk other-keys
"$make" psk unknown-keys somebody
meets "tls-psk=other-keys" ",tls-psk=keys" "does not accept this side's key" "has not the key of user 'qemu'"
meets "tls-psk=unknown-keys" ",tls-psk=keys" "does not accept this side's key" "the key of no user that is known"
meets "tls-psk=keys" ",tls=$c/dst" "the peer shows a certificate" "peer"
meets "tls=$c/src" ",tls-psk=keys" "the peer wants another proof" "the peer has shown no key"

say "a client of TLS 1.2, and one that shows nothing"
# stranger OPTION...: what openssl's client is told is in said
stranger() {
	limited openssl s_client -connect "${uri#tcp:}" "$@" </dev/null >said 2>&1 || true
}
listens dst -o "listen=tcp:127.0.0.1:0,tls=$c/dst"
stranger -tls1_2
grep -q 'alert protocol version' said
eventually "the destination says so" grep -q 'the peer does not speak TLS 1.3' dst.log
stranger -tls1_3
eventually "the destination says so" grep -q 'the peer has shown no certificate' dst.log
unmount dst

say "keys that both have"
listens dst -o "listen=tcp:127.0.0.1:0,tls-psk=keys,tls-authz=q*"
migfs src -o tls-psk=keys
tapped
move vm
expect_status dst/vm peer-identity = qemu
untap
not grep -qaF "$MARK" taken
unmount src

say "certificates are read again"
unmount dst
cp -r "$c/dst" renewed
listens dst -o "listen=tcp:127.0.0.1:0,tls=renewed"
migfs src -o "tls=$c/src"
outgoing before
tell src/before start
expect_status src/before peer-identity = CN=localhost.example
"$make" ca new renewed.example 127.0.0.1 >>make.log
cp new/* renewed/
kill -HUP "${daemon[dst]}"
eventually "they are read" grep -q 'have been read again' dst.log
outgoing after
tell src/after start
expect_status src/after peer-identity = CN=renewed.example
expect_status src/before status = active
rm renewed/server-key.pem
kill -HUP "${daemon[dst]}"
eventually "they are not" grep -q 'the old certificates and keys stay: .*server-key.pem' dst.log
outgoing later
tell src/later start
expect_status src/later peer-identity = CN=renewed.example
for name in before after later; do
	tell "src/$name" cancel
	reaches "dst/$name" failed cancelled
done

say "who has become another one cannot go on"
lay 1
unmount src
cp -r "$c/src" becoming
migfs src -o tls=becoming
outgoing vm 2
expect ok write src/vm/resume 60
tell src/vm start
ask down
reaches src/vm paused
cp new/client-* becoming/
kill -HUP "${daemon[src]}"
eventually "they are read" grep -q 'have been read again' src.log
ask up
reaches src/vm failed
grep -q "'vm' cannot go on here" src/vm/error || fail "error says: $(cat src/vm/error)"
grep -q "'vm' is of 'CN=source.example', and this is 'CN=renewed.example'" dst.log
tell dst/vm cancel
forget src/vm dst/vm

say "unix sockets stay as they are, with the same options"
unmount dst
listens dst -o "listen=unix:$dir/socket,tls=$c/dst"
move vm
expect_status src/vm tls = off
