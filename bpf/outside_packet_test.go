// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// forwarded is lxc_egress of the backend for what the host's stack forwards from the uplink: the firewall has let
// it pass, or is not there.
func forwarded() hook { return hook{"lxc_egress", at(backendIf, uplinkIf)} }

func TestFromOutsideDirectly(t *testing.T) {
	// stopped says that a packet for a container gets no further than to the stack.
	stopped := func(w *world, f frame) {
		w.Helper()
		w.send(fromOutside(), f).untouched()
		w.send(forwarded(), f).dropped("isolated to-container")
	}
	both(t, []scenario{
		{"nobody outside reaches a container at its own address", func(w *world) {
			w.leaves(true)
			for _, f := range []frame{
				tcp(w.outside, 5000, w.backend, 8080, syn), tcp(w.outside, 5000, w.backend, 8080, ack), udp(w.outside, 5000, w.backend, 8080, "q"),
				echo(w.outside, w.backend, false, "ping"), ip(w.outside, w.backend, 47, raw("generic routing")),
				unreachable(w.outside, w.backend, true, tcp(w.backend, 1, w.outside, 2, syn).quote()),
			} {
				stopped(w, f)
			}
		}},
		{"nor at a port that is published at the host's, or at its loopback only", func(w *world) {
			w.leaves(true)
			w.publish(w.host, 80, ProtocolTCP)
			w.publish(everywhere(w), 8080, ProtocolTCP)
			w.publish(w.loopback, 81, ProtocolTCP)
			stopped(w, tcp(w.outside, 5000, w.backend, 8080, syn))
			stopped(w, tcp(w.outside, 5000, w.backend, 80, syn))
		}},
		{"a port of the loopback's is not reached at the host's address, nor at the loopback's", func(w *world) {
			w.leaves(true)
			w.publish(w.loopback, 80, ProtocolTCP)
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, syn)).untouched()
			w.send(fromOutside(), tcp(w.outside, 5000, w.loopback, 80, syn)).dropped("off-host to-container")
			w.send(fromOutside(), tcp(w.loopback, 5000, w.host, 80, syn)).dropped("off-host to-container")
			w.send(fromOutside(), udp(w.outside, 5000, w.loopback, 22, "q")).dropped("off-host to-container")
		}},
		{"nor by a container", func(w *world) {
			w.leaves(true)
			w.publish(w.loopback, 80, ProtocolTCP)
			w.send(fromClient(), tcp(w.client, 5000, w.host, 80, syn)).untouched()
			in := tcp(w.client, 5000, w.loopback, 80, syn)
			w.send(fromClient(), in).answered(unreachable(w.loopback, w.client, false, in.quote()), "no-route")
		}},
		{"the answers to a masqueraded flow reach it through the stack, too", func(w *world) {
			w.leaves(true)
			w.send(fromBackend(), tcp(w.backend, 5000, w.outside, 443, syn))
			answer := tcp(w.outside, 443, w.backend, 5000, synAck)
			w.send(forwarded(), answer).untouched() // as host_ingress hands it on for an endpoint that may not be redirected to
			w.send(forwarded(), tcp(w.outside, 443, w.backend, 5001, synAck)).dropped("isolated to-container")
			w.send(forwarded(), tcp(w.stranger(), 443, w.backend, 5000, synAck)).dropped("isolated to-container")
		}},
	})
}

func TestFlowsWithTheirOwnAddress(t *testing.T) {
	both(t, []scenario{
		{"what leaves unmasqueraded gets its answers, and nobody else in", func(w *world) {
			w.leaves(false)
			w.send(fromClient(), tcp(w.client, 5000, w.outside, 443, syn)).leftAs(func(uint16) frame { return tcp(w.client, 5000, w.outside, 443, syn) })
			answer := tcp(w.outside, 443, w.client, 5000, synAck)
			w.send(fromOutside(), answer).toClient(answer)
			w.send(fromClient(), tcp(w.client, 5000, w.outside, 443, ack)).leftAs(func(uint16) frame { return tcp(w.client, 5000, w.outside, 443, ack) })
			w.send(fromOutside(), tcp(w.outside, 444, w.client, 5000, synAck)).untouched()
			w.send(fromOutside(), tcp(w.stranger(), 443, w.client, 5000, synAck)).untouched()
			require.Len(w, entries(w.TB, "snat"), 2)
		}},
		{"so do datagrams, pings and protocols without ports", func(w *world) {
			w.leaves(false)
			gre := func(src, dst netip.Addr) frame { return ip(src, dst, 47, raw("generic routing")) }
			for _, f := range [][2]frame{
				{udp(w.client, 5000, w.outside, 53, "q"), udp(w.outside, 53, w.client, 5000, "a")},
				{echoOf(w.client, w.outside, 77, false), echoOf(w.outside, w.client, 77, true)},
				{gre(w.client, w.outside), gre(w.outside, w.client)},
			} {
				w.send(fromOutside(), f[1]).untouched()
				w.send(fromClient(), f[0]).leftAs(func(uint16) frame { return f[0] })
				w.send(fromOutside(), f[1]).toClient(f[1])
			}
		}},
		{"and errors about it", func(w *world) {
			w.leaves(false)
			sent := tcp(w.client, 5000, w.outside, 443, syn)
			w.send(fromClient(), sent)
			known := unreachable(w.router, w.client, false, sent.quote())
			w.send(fromOutside(), known).toClient(known)
			w.send(fromOutside(), unreachable(w.router, w.client, false, tcp(w.client, 5001, w.outside, 443, syn).quote())).untouched()
		}},
		{"fragments follow their head, both ways", func(w *world) {
			w.leaves(false)
			long := string(make([]byte, 64))
			first, later := udp(w.client, 5000, w.outside, 53, long).fragments(32)
			w.send(fromClient(), first).leftAs(func(uint16) frame { return first })
			w.send(fromClient(), later).leftAs(func(uint16) frame { return later })
			first, later = udp(w.outside, 53, w.client, 5000, long).fragments(32)
			w.send(fromOutside(), later).untouched()
			w.send(fromOutside(), first).toClient(first)
			w.send(fromOutside(), later).toClient(later)
		}},
		{"what leaves by the stack gets its answers from there", func(w *world) {
			w.leaves(true)
			require.NoError(w, testDP.DeleteUplink(uplinkIf))
			sent := tcp(w.backend, 5000, w.outside, 443, syn)
			w.send(fromBackend(), sent).untouched()
			w.send(forwarded(), tcp(w.outside, 443, w.backend, 5000, synAck)).untouched()
			w.send(forwarded(), unreachable(w.router, w.backend, false, sent.quote())).untouched()
			w.send(forwarded(), tcp(w.outside, 443, w.backend, 5001, synAck)).dropped("isolated to-container")
			w.send(forwarded(), unreachable(w.router, w.backend, false, tcp(w.client, 5000, w.outside, 443, syn).quote())).
				dropped("isolated to-container")
			first, later := udp(w.outside, 53, w.backend, 5000, string(make([]byte, 64))).fragments(32)
			w.send(fromBackend(), udp(w.backend, 5000, w.outside, 53, "q")).untouched()
			w.send(forwarded(), later).dropped("isolated to-container")
			w.send(forwarded(), first).untouched()
			w.send(forwarded(), later).untouched()
		}},
		{"they count against the endpoint's quota", func(w *world) {
			w.leaves(false)
			require.NoError(w, testDP.maps["quotas"].Put(uint32(clientIf), uint32(16384)))
			w.send(fromClient(), udp(w.client, 5000, w.outside, 53, "q")).dropped("snat-quota")
		}},
	})
}

func TestContainersAtTheirOwnAddress(t *testing.T) {
	open := func(w *world) {
		w.Helper()
		require.NoError(w, testDP.PutEndpoint(Endpoint{
			Addr: w.backend, IfIndex: backendIf, Network: network1, Redirect: true, Open: true, MAC: backendMAC, HostMAC: backendHostMAC,
		}))
	}
	ping := func(w *world) {
		w.Helper()
		require.NoError(w, testDP.PutEndpoint(Endpoint{
			Addr: w.backend, IfIndex: backendIf, Network: network1, Redirect: true, Ping: true, MAC: backendMAC, HostMAC: backendHostMAC,
		}))
	}
	both(t, []scenario{
		{"a port published there is reached from outside, and no other", func(w *world) {
			w.leaves(false)
			w.routed(8080, ProtocolTCP)
			w.routed(53, ProtocolUDP)
			in := tcp(w.outside, 5000, w.backend, 8080, syn)
			w.send(fromOutside(), in).toBackend(in)
			w.send(fromBackend(), tcp(w.backend, 8080, w.outside, 5000, synAck)).leftAs(func(uint16) frame { return tcp(w.backend, 8080, w.outside, 5000, synAck) })
			in = udp(w.outside, 5000, w.backend, 53, "q")
			w.send(fromOutside(), in).toBackend(in)
			w.send(fromOutside(), tcp(w.outside, 5000, w.backend, 8081, syn)).untouched()
			w.send(fromOutside(), udp(w.outside, 5000, w.backend, 8080, "q")).untouched()
			w.send(fromOutside(), tcp(w.outside, 5000, w.client, 8080, syn)).untouched()
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 8080, syn)).untouched()
		}},
		{"its answers leave as they are even where the rest is masqueraded", func(w *world) {
			w.leaves(true)
			w.routed(8080, ProtocolTCP)
			in := tcp(w.outside, 5000, w.backend, 8080, syn)
			w.send(fromOutside(), in).toBackend(in)
			w.send(fromBackend(), tcp(w.backend, 8080, w.outside, 5000, synAck)).leftAs(func(uint16) frame { return tcp(w.backend, 8080, w.outside, 5000, synAck) })
			require.Empty(w, entries(w.TB, "snat"))
		}},
		{"the host's address and the container's may be asked by one client from one port", func(w *world) {
			w.leaves(true)
			w.publish(w.host, 80, ProtocolTCP)
			w.routed(8080, ProtocolTCP)
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, syn)).toBackend(tcp(w.outside, 5000, w.backend, 8080, syn))
			p := w.send(fromOutside(), tcp(w.outside, 5000, w.backend, 8080, syn)).sourcePort()
			require.GreaterOrEqual(w, p, uint16(61000))
			w.send(fromBackend(), tcp(w.backend, 8080, w.outside, p, synAck)).leftAs(func(uint16) frame { return tcp(w.backend, 8080, w.outside, 5000, synAck) })
		}},
		{"containers of other networks reach it there, too", func(w *world) {
			w.leaves(false)
			w.movesOut()
			w.routed(8080, ProtocolTCP)
			in := tcp(w.client, 5000, w.backend, 8080, syn)
			w.send(fromClient(), in).toBackend(in)
			w.send(fromBackend(), tcp(w.backend, 8080, w.client, 5000, synAck)).toClient(tcp(w.backend, 8080, w.client, 5000, synAck))
			w.send(fromClient(), tcp(w.client, 5000, w.backend, 8081, syn)).dropped("isolated")
		}},
		{"a container that answers ping does, and no more", func(w *world) {
			w.leaves(false)
			w.send(fromOutside(), echo(w.outside, w.backend, false, "ping")).untouched()
			ping(w)
			w.send(fromOutside(), echo(w.outside, w.backend, false, "ping")).toBackend(echo(w.outside, w.backend, false, "ping"))
			w.send(fromBackend(), echo(w.backend, w.outside, true, "ping")).leftAs(func(uint16) frame { return echo(w.backend, w.outside, true, "ping") })
			w.send(fromOutside(), tcp(w.outside, 5000, w.backend, 8080, syn)).untouched()
		}},
		{"an open container is reached by everything, and answers as itself", func(w *world) {
			w.leaves(true)
			open(w)
			for _, f := range [][2]frame{
				{tcp(w.outside, 5000, w.backend, 22, syn), tcp(w.backend, 22, w.outside, 5000, synAck)},
				{udp(w.outside, 5000, w.backend, 53, "q"), udp(w.backend, 53, w.outside, 5000, "a")},
				{echo(w.outside, w.backend, false, "ping"), echo(w.backend, w.outside, true, "ping")},
			} {
				w.send(fromOutside(), f[0]).toBackend(f[0])
				w.send(fromBackend(), f[1]).leftAs(func(uint16) frame { return f[1] })
				w.send(fromOutside(), f[0]).toBackend(f[0])
			}
			w.send(fromBackend(), tcp(w.backend, 5000, w.outside, 443, syn)).leftAs(func(p uint16) frame { return tcp(w.host, p, w.outside, 443, syn) })
		}},
		{"nothing that is forged reaches an open container past the stack", func(w *world) {
			w.leaves(true)
			open(w)
			w.send(fromOutside(), echo(w.client, w.backend, false, "ping")).untouched()
			w.send(fromOutside(), echo(w.host, w.backend, false, "ping")).untouched()
			if w.v6 {
				w.send(fromOutside(), icmp(w.router, w.backend, 136, 0, 0, slices.Concat(w.gateway.AsSlice(), []byte{2, 1, 2, 1, 2, 3, 4, 5})).hops(255)).untouched()
				w.send(fromOutside(), echo(netip.MustParseAddr("fe80::9"), w.backend, false, "ping")).untouched()
			}
		}},
		{"fragments for an open container follow their head, and its stray segments are the stack's", func(w *world) {
			w.leaves(true)
			open(w)
			first, later := udp(w.outside, 5000, w.backend, 53, string(make([]byte, 64))).fragments(32)
			w.send(fromOutside(), later).untouched()
			w.send(fromOutside(), first).toBackend(first)
			w.send(fromOutside(), later).toBackend(later)
			w.send(fromOutside(), tcp(w.outside, 5000, w.backend, 22, data)).untouched()
		}},
		{"an open container's refusal reaches who asked", func(w *world) {
			w.leaves(true)
			open(w)
			asked := udp(w.outside, 5000, w.backend, 54, "q")
			w.send(fromOutside(), asked).toBackend(asked)
			refusal := unreachable(w.backend, w.outside, true, asked.quote())
			w.send(fromBackend(), refusal).leftAs(func(uint16) frame { return refusal })
		}},
		{"an open container is open to the outside only", func(w *world) {
			w.leaves(true)
			w.movesOut()
			require.NoError(w, testDP.PutEndpoint(Endpoint{
				Addr: w.backend, IfIndex: backendIf, Network: network2, Redirect: true, Open: true, MAC: backendMAC, HostMAC: backendHostMAC,
			}))
			w.send(fromClient(), tcp(w.client, 5000, w.backend, 22, syn)).dropped("isolated")
			w.send(fromOutside(), tcp(w.client, 5000, w.backend, 22, syn)).dropped("spoofed to-container")
		}},
	})
}
