# shellcheck shell=bash
# What the test bench is built from and where it lives: sourced by tests/tools/install, tests/image/build, tests/fakehost and tests/vm/run.
# Every directory in the cache is named after what made it, so that two checkouts can share one cache and a new version never meets an old binary.
# shellcheck disable=SC2034  # read by the scripts that source this

MOBY_VERSION=v2.0.0-beta.24 # engine 29
CONTAINERD_VERSION=v2.4.2
RUNC_VERSION=v1.5.2       # as in runc/go.mod
COMPOSE_VERSION=v5.5.0    # as in compose/go.mod
NERDCTL_VERSION=v2.0.4    # as in nerdctl/go.mod
CNITOOL_VERSION=v1.3.1
CNI_PLUGINS_VERSION=v1.9.1
NFPM_VERSION=v2.45.2      # as in nfpm/go.mod
GOLANGCI_VERSION=v2.15.0
DEBIAN_DOCKER=20.10       # Debian 12's docker.io; never installed, only unpacked
VM_KERNELS='6.1 6.12'     # series of Debian's linux-image packages, for tests/vm/run; never installed, the last one is the default
DEBIAN_BUSYBOX=1.35       # of Debian 12, for the image: unpacked too, because it conflicts with busybox-static

CACHE=${MUSTANG_CACHE:-/var/cache/mustang}

# Compiled tools are keyed by the compiler too; without Go (in a VM, say) the newest ones in the cache are taken.
go_version() {
  go env GOVERSION 2>/dev/null || find "$CACHE" -maxdepth 1 -type d -name "engine29-$MOBY_VERSION-*-go*" | sed -n 's/.*-\(go[^-]*\)$/\1/p' | sort -V | tail -n 1
}

# Sets the paths that depend on the Go version: once, because asking `go` costs milliseconds at every start.
set_cache_paths() {
  local go; go=$(go_version)
  ENGINE29=$CACHE/engine29-$MOBY_VERSION-containerd-$CONTAINERD_VERSION-runc-$RUNC_VERSION-$go
  ENGINE20=$CACHE/engine20-$DEBIAN_DOCKER
  BUSYBOX=$CACHE/busybox-$DEBIAN_BUSYBOX
  COMPOSE=$CACHE/compose-$COMPOSE_VERSION-$go
  NERDCTL=$CACHE/nerdctl-$NERDCTL_VERSION-cnitool-$CNITOOL_VERSION-plugins-$CNI_PLUGINS_VERSION-$go
  NFPM=$CACHE/nfpm-$NFPM_VERSION-$go
  GOLANGCI=$CACHE/golangci-$GOLANGCI_VERSION-$go
}

# Every script fails through here: what went wrong, and what to do about it.
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }
