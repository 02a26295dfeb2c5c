#!/bin/sh
# On a node, from the installer's pod: the node's / is at $HOST. Twice is as good as once.
set -eu
HOST=${HOST:-/host}
CONF=$HOST/etc/containerd/conf.d/joey.toml
MAIN=$HOST/etc/containerd/config.toml
changed=0

if [ "${JOEY_REMOVE:-0}" = 1 ]; then
	[ ! -e "$CONF" ] || { rm "$CONF"; changed=1; }
	rm -rf "$HOST/opt/joey"
else
	mkdir -p "$HOST/opt" "$HOST/etc/containerd/conf.d"
	rm -rf "$HOST/opt/joey.new"
	cp -a /opt/joey "$HOST/opt/joey.new"
	# the program is found by way of its package, wherever that lies below /opt/joey
	program=$(cd "$HOST/opt/joey.new" && find . -path '*/joey/native/bin/joey-oci' -type f | head -n 1)
	[ -n "$program" ] || { echo "the image has no joey below /opt/joey" >&2; exit 1; }
	mkdir -p "$HOST/opt/joey.new/bin"
	ln -sf "../${program#./}" "$HOST/opt/joey.new/bin/joey-oci"
	rm -rf "$HOST/opt/joey.old"
	[ ! -e "$HOST/opt/joey" ] || mv "$HOST/opt/joey" "$HOST/opt/joey.old"
	mv "$HOST/opt/joey.new" "$HOST/opt/joey"
	rm -rf "$HOST/opt/joey.old"
	cmp -s "$CONFIG" "$CONF" || { cp "$CONFIG" "$CONF.new"; mv "$CONF.new" "$CONF"; changed=1; }
	if ! grep -qs 'conf\.d/\*\.toml' "$MAIN"; then
		! grep -qs '^imports' "$MAIN" || { echo "$MAIN: add \"/etc/containerd/conf.d/*.toml\" to imports" >&2; exit 1; }
		{ echo 'imports = ["/etc/containerd/conf.d/*.toml"]'; cat "$MAIN" 2>/dev/null || echo 'version = 2'; } > "$MAIN.new"
		mv "$MAIN.new" "$MAIN"
		changed=1
	fi
fi
[ "$changed" = 0 ] || [ "${JOEY_RESTART:-1}" = 0 ] || nsenter --target 1 --mount -- systemctl restart containerd
