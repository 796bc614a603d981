#!/bin/sh
# hlip with the user, settings and secrets that the units of systemd/ give it. For root, as /usr/local/sbin/hlip.
# It runs in /: name files by their whole path, where the user hlip may read or write them.
exec systemd-run --quiet --pipe --pty --wait --collect --uid=hlip --gid=hlip \
    -p EnvironmentFile=-/etc/hlip/secrets.env \
    -E HLIP_CONFIG=/etc/hlip/hlip.toml -E HLIP_SPOOL__FOLDER=/var/lib/hlip \
    /opt/hlip/bin/hlip "$@"
