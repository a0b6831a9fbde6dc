# SPDX-License-Identifier: Apache-2.0
# mustang: `make demo` shows the main job, `make test` tries it. `make help` lists the rest.

SHELL := /bin/bash
.DEFAULT_GOAL := build

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
COMMIT  ?= $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)
# What would be set up at every start, of which there is one for each call of a runtime of CNI, and is of no use here: man pages, the pages of
# gRPC for debugging, formats of charts other than .svg and .png.
TAGS    := urfave_cli_no_docs,grpcnotrace,minimal
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)

include tests/bench.mk
include plugin-config/rules.mk

.PHONY: build check-host demo test test-full test-unit test-packets test-engine29 test-engine20 test-kernels soak generate lint bench help

build: check-go ## bin/mustang, a static binary; needs Go alone
	CGO_ENABLED=0 $(GO) build -trimpath -tags $(TAGS) -ldflags '$(LDFLAGS)' -o bin/mustang ./cmd/mustang

.PHONY: test-programs
test-programs: ## the programs that run inside the test image
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bin/tests/ ./tests/cmd/...

.PHONY: next-build
next-build: ## bin/next/mustang, the same with another version: scenarios replace the daemon by it, and it by the daemon
	CGO_ENABLED=0 $(GO) build -trimpath -tags $(TAGS) -ldflags '-s -w -X main.version=$(VERSION)-next -X main.commit=$(COMMIT)' -o bin/next/mustang ./cmd/mustang

.PHONY: check-go
check-go:
	@tests/tools/check-host go

check-host:
	@tests/tools/check-host all

demo: check-host ## the main job, shown in a fake host (HOST=1: on this host's own engine)
	@$(MAKE) --no-print-directory build test-programs engines
	tests/demo

test: check-host ## all tests that fit a quarter of an hour, with all set-up
	@$(MAKE) --no-print-directory build test-programs plugin engines kernels
	@$(MAKE) --no-print-directory test-unit test-packets test-engine29 test-engine20 test-kernels

test-unit: ## unit tests, no root needed
	$(GO) test -race ./api/... ./bench/... ./cmd/... ./config/... ./docs/... ./driver/... ./ipam/... ./metrics/... ./monitor/... ./nft/... ./service/... ./state/... ./tests/bench/... ./tests/errors/...

test-packets: ## packet tables through BPF_PROG_TEST_RUN, and verifier counts
	unshare --mount --net $(GO) test -count=1 ./bpf/... ./tests/kernel/...

.PHONY: test-old-packets
test-old-packets: ## packet tables and the model on the other kernels, in a virtual machine; tagged frames are sent by TCX
	CGO_ENABLED=0 $(GO) test -c -o bin/packets.test ./bpf
	. tests/tools/versions.sh; printf '%s\n' $$VM_KERNELS | xargs -P 2 -I {} tests/vm/run --kernel {} -- bin/packets.test -test.skip Tagged \
	  -test.run "^($$(grep -hoE '^func Test[A-Za-z0-9]+' bpf/*_packet_test.go bpf/model_fuzz_test.go | sed 's/^func //' | paste -sd'|'))$$"

test-engine29: ## scenarios on a current Docker engine
	tests/scenarios/run --engine 29

test-engine20: ## scenarios on Debian's Docker 20.10
	tests/scenarios/run --engine 20

test-kernels: ## ipvlan, on a kernel that has it, in a virtual machine
	tests/modes test

test-full: check-host ## what is too long for `make test`: the other scenarios of both engines, other modes and kernels, fuzzing, lint
	@$(MAKE) --no-print-directory build test-programs deb rpm plugin engines kernels lint
	tests/scenarios/run --engine 29 --rest
	tests/scenarios/run --engine 20 --rest
	tests/modes full
	@$(MAKE) --no-print-directory test-old-packets
	tests/fuzz

soak: check-host ## churn, restarts, kills and fuzzing for MINUTES= (30), with a report: docs/soak.md
	@$(MAKE) --no-print-directory build test-programs engines
	tests/soak

generate: ## the BPF objects and their Go mirrors, which needs clang; dashboard, alert rules and the page of metrics
	$(MAKE) -C bpf -B
	$(GO) run ./metrics/gen

lint: ## static checks of Go, C and shell, and that `make generate` leaves no diff
	tests/tools/lint

bench: check-host ## the figures of docs/BENCHMARKS.md: ratios of interleaved runs
	@$(MAKE) --no-print-directory build test-programs engines
	tests/bench/run

help: ## this list
	@grep -hE '^[a-z0-9 -]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18
