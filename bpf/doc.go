// SPDX-License-Identifier: Apache-2.0

// Package bpf speaks bpf(2): it loads, pins and attaches the datapath's programs and types its maps.
package bpf
