# shellcheck shell=bash
# Shared by the scripts that build omegatun and run it in namespaces: find what they need, or say what is missing.

say() { printf '%s\n' "$*" >&2; }

# need COMMAND:PACKAGE…: the commands must exist; root on a Debian machine gets them installed.
need() {
  local pair packages=()
  PATH=$PATH:/usr/sbin:/sbin # nft and ip are there, also for users
  for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null || packages+=("${pair#*:}")
  done
  ((${#packages[@]})) || return 0
  if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
    say "missing: ${packages[*]}; install with: sudo apt-get install ${packages[*]}"
    exit 1
  fi
  say "installing ${packages[*]}"
  local log
  if ! log=$( { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${packages[@]}"; } 2>&1); then
    say "$log"
    say "could not install ${packages[*]}"
    exit 1
  fi
}

# find_go sets $go. sudo often hides the place where Go's own installer puts it.
find_go() {
  local candidate
  for candidate in "$(command -v go || true)" /usr/local/go/bin/go /usr/lib/go/bin/go "${HOME:-}/go/bin/go" /snap/bin/go; do
    if [[ -n $candidate && -x $candidate ]]; then
      go=$candidate
      return
    fi
  done
  say "missing: Go 1.26 or later; see https://go.dev/doc/install"
  exit 1
}

# as_invoker COMMAND…: under sudo, run it as the user who called sudo, so that the caches stay theirs.
as_invoker() {
  if [[ $EUID -eq 0 && -n ${SUDO_USER:-} && $SUDO_USER != root ]]; then
    sudo -u "$SUDO_USER" -H -- env PATH="$PATH" "$@"
  else
    "$@"
  fi
}

# make_work NAME: make a temporary folder, $work. Not in /run: namespaces have a /run of their own.
make_work() {
  case ${TMPDIR:=/tmp} in /run | /run/* | /var/run/*) TMPDIR=/tmp ;; esac
  work=$(mktemp -d "$TMPDIR/omegatun-$1.XXXXXX")
}

# build DIR PACKAGE…: compile commands into DIR.
build() {
  local dir=$1
  shift
  if [[ $EUID -eq 0 && -n ${SUDO_USER:-} && $SUDO_USER != root ]]; then
    chown "$SUDO_USER" "$dir"
  fi
  as_invoker env CGO_ENABLED=0 "$go" build -buildvcs=false -o "$dir/" "$@"
}

# run_tests DIR ARGUMENT…: build omegatun (unless OMEGATUN_BIN names one) and the tests in DIR, and run them there.
run_tests() {
  local dir=$1
  shift
  need ip:iproute2 nft:nftables
  find_go
  make_work test
  trap 'rm -rf "$work"' EXIT
  if [[ -n ${OMEGATUN_BIN:-} ]]; then
    OMEGATUN_BIN=$(realpath "$OMEGATUN_BIN")
  else
    build "$work" ./cmd/omegatun
    OMEGATUN_BIN=$work/omegatun
  fi
  export OMEGATUN_BIN
  if [[ $EUID -eq 0 && -n ${SUDO_USER:-} && $SUDO_USER != root ]]; then
    chown "$SUDO_USER" "$work"
  fi
  as_invoker env CGO_ENABLED=0 "$go" test -c -o "$work/tests" "./$dir"
  local status=0
  (cd "$dir" && exec "$work/tests" -test.v -test.timeout=20m "$@") || status=$?
  exit "$status"
}
