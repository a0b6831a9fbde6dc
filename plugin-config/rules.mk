# What an operator installs: packages and the managed plugin. Included by the Makefile.

ARCH           := $(shell $(GO) env GOARCH)
# A version that dpkg and rpm can compare: 1.2.3, or 0.0.0 with the time and the commit before there is a first one.
COMMIT_TIME    := $(shell git log -1 --format=%cI 2>/dev/null || echo 1970-01-01T00:00:00Z)
PACKAGE_VERSION ?= $(shell git describe --tags --match 'v[0-9]*' 2>/dev/null | sed -e 's/^v//' -e 's/-/+/' -e 's/-/./g' | grep . || \
	printf '0.0.0+%s.%s' "$$(TZ=UTC git log -1 --date=format-local:%Y%m%d%H%M --format=%cd 2>/dev/null || echo 0)" $(COMMIT))

.PHONY: deb rpm package-files plugin

deb rpm: build package-files ## bin/*.deb and bin/*.rpm (by nfpm): binary, units, man page, completions
	rm -f bin/mustang*.$@
	tests/tools/install --nfpm
	GOARCH=$(ARCH) PACKAGE_VERSION=$(PACKAGE_VERSION) SOURCE_DATE_EPOCH=$$(date -d '$(COMMIT_TIME)' +%s) \
		$$(tests/tools/install --path nfpm)/bin/nfpm package --config plugin-config/package/nfpm.yaml --packager $@ --target bin/

package-files: build # what the program itself generates, the same at every time
	rm -rf bin/package && mkdir -p bin/package
	CGO_ENABLED=0 $(GO) run -trimpath -ldflags '$(LDFLAGS)' ./cmd/mustang man | gzip -9n >bin/package/mustang.8.gz
	bin/mustang completion bash >bin/package/mustang.bash
	bin/mustang completion zsh >bin/package/_mustang
	bin/mustang completion fish >bin/package/mustang.fish
	gzip -9nc CHANGELOG.md >bin/package/changelog.gz
	{ printf 'mustang. Go code: Apache-2.0. BPF C: BSD-2-Clause or GPL-2.0.\n\n'; cat LICENSE LICENSES/*; } >bin/package/copyright

# The managed plugin, as `docker plugin create` takes it: a root directory with what Dockerfile copies, and the directories that
# the engine and config.json mount on.
plugin: build ## bin/plugin, for `docker plugin create mustang bin/plugin`
	rm -rf bin/plugin
	mkdir -p bin/plugin/rootfs/usr/bin bin/plugin/rootfs/run/docker/plugins bin/plugin/rootfs/sys/fs/bpf \
		bin/plugin/rootfs/sys/fs/cgroup bin/plugin/rootfs/etc bin/plugin/rootfs/var/lib bin/plugin/rootfs/tmp bin/plugin/rootfs/proc bin/plugin/rootfs/dev
	ln -s ../run bin/plugin/rootfs/var/run
	cp bin/mustang bin/plugin/rootfs/usr/bin/
	cp plugin-config/plugin/config.json bin/plugin/
