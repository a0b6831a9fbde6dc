// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// BenchmarkPublished tells how long the programs look at one packet of a published port: prog-ns/op. Everything is in
// the caches here, so that it shows what the code costs; in traffic each packet takes longer.
func BenchmarkPublished(b *testing.B) {
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	require.NoError(b, err)
	defer stats.Close()
	request := func(w *world, i int, s segment) frame { return tcp(w.outside, uint16(5000+i%50000), w.host, 80, s) }
	answer := func(w *world, i int, s segment) frame {
		return tcp(w.backend, 8080, w.outside, uint16(5000+i%50000), s)
	}
	for _, v6 := range []bool{false, true} {
		for _, c := range []struct {
			name   string
			hook   hook
			packet func(w *world, i int) frame
		}{
			{"begin", fromOutside(), func(w *world, i int) frame { return request(w, i, syn) }},
			{"request", fromOutside(), func(w *world, _ int) frame { return request(w, 0, ack) }},
			{"answer", fromBackend(), func(w *world, _ int) frame { return answer(w, 0, ack) }},
			{"close", fromOutside(), func(w *world, _ int) frame { return request(w, 0, segment{flags: flagFIN | flagACK}) }},
			{"host", fromOutside(), func(w *world, _ int) frame { return tcp(w.outside, 5000, w.host, 81, ack) }},
		} {
			b.Run(c.name+map[bool]string{true: "6", false: "4"}[v6], func(b *testing.B) {
				w := newWorld(b, v6)
				w.leaves(true)
				w.publish(everywhere(w), 80, ProtocolTCP)
				w.send(fromOutside(), request(w, 0, syn)).toBackend(tcp(w.outside, 5000, w.backend, 8080, syn))
				program := testDP.program(c.hook.program)
				before, err := program.Stats()
				require.NoError(b, err)
				for i := range b.N {
					f := c.packet(w, i)
					if c.hook.ctx.Ifindex == uint32(backendIf) {
						f = f.macs(backendHostMAC, backendMAC)
					} else {
						f = f.macs(clientHostMAC, clientMAC)
					}
					opts := ebpf.RunOptions{Data: f.bytes(), Context: c.hook.ctx}
					if _, err := program.Run(&opts); err != nil {
						b.Fatal(err)
					}
				}
				after, err := program.Stats()
				require.NoError(b, err)
				b.ReportMetric(float64(after.Runtime-before.Runtime)/float64(after.RunCount-before.RunCount), "prog-ns/op")
			})
		}
	}
}
