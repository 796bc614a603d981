#!/bin/sh
# The real peers that tests run against. Installed when this runs as root on Debian; otherwise it says what is
# missing, and pytest skips what needs it. Debian's services are kept from starting by themselves.
set -eu

wanted() {
    command -v Orthanc >/dev/null || echo orthanc
    [ -e /usr/share/orthanc/plugins/libOrthancDicomWeb.so ] || echo orthanc-dicomweb
    command -v dcmsend >/dev/null || echo dcmtk
    command -v dciodvfy >/dev/null || echo dicom3tools
    command -v chromium >/dev/null || echo chromium
    command -v npm >/dev/null || echo npm
    command -v strace >/dev/null || echo strace
    ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || echo postgresql
    [ -e /usr/lib/rabbitmq/bin/rabbitmq-server ] || echo rabbitmq-server
    command -v redis-server >/dev/null || echo redis-server
    command -v nginx >/dev/null || echo nginx-light
    command -v ip >/dev/null || echo iproute2
}

missing=$(wanted | tr '\n' ' ')
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "Not installed, so tests that need them are skipped: $missing"
    exit 0
fi

policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -o DPkg::Lock::Timeout=300 -qq update
# shellcheck disable=SC2086 (a list of names)
apt-get -o DPkg::Lock::Timeout=300 -qq install -y --no-install-recommends $missing >/dev/null ||
    echo "Debian's packages could not be installed; tests that need them are skipped: $missing"
