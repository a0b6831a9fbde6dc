// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWayOutLimits(t *testing.T) {
	gso := func(h hook, size uint32) hook { h.ctx.GsoSize, h.ctx.GsoSegs = size, 2; return h }
	big := segment{flags: flagACK, seq: 1001, ack: 7001, window: 501, data: string(make([]byte, 1700))}
	both(t, []scenario{
		{"too big is told by the gateway, with the way's MTU and the packet", func(w *world) {
			w.leaves(true)
			w.mtu(1400)
			in := udp(w.client, 5000, w.outside, 53, string(make([]byte, 1420)))
			typ, code := uint8(3), uint8(4)
			if w.v6 {
				typ, code = 2, 0
			}
			w.send(fromClient(), in).answered(icmp(w.gateway, w.client, typ, code, 1400, in.quote()), "too-big")
			require.Empty(w, entries(w.TB, "snat"))
		}},
		{"what was for a VIP, whose backend is outside, is told of as its container sent it", func(w *world) {
			w.leaves(true)
			w.mtu(1400)
			w.service(w.vip, 53, ProtocolUDP, w.backendAt(w.outside, 5353))
			typ, code := uint8(3), uint8(4)
			if w.v6 {
				typ, code = 2, 0
			}
			in := udp(w.client, 5000, w.vip, 53, string(make([]byte, 1420)))
			for range 2 { // of a new flow, and of one that goes on
				w.send(fromClient(), in).answered(icmp(w.gateway, w.client, typ, code, 1400, in.quote()), "too-big")
			}
			small := udp(w.client, 5000, w.vip, 53, "q").hops(1)
			w.send(fromClient(), small).answered(exceeded(w, ip(w.gateway, w.client, 0, nil), small.quote()), "ttl")
		}},
		{"what just fits leaves", func(w *world) {
			w.leaves(true)
			w.mtu(1400)
			text := string(make([]byte, 1400-28))
			if w.v6 {
				text = text[20:]
			}
			w.leavesAs(udp(w.client, 5000, w.outside, 53, text), func(p uint16) frame { return udp(w.host, p, w.outside, 53, text) })
			in := udp(w.client, 5000, w.outside, 53, text+"1")
			r := w.send(fromClient(), in)
			require.Equal(w, map[string]uint64{"too-big from-container": 1}, r.counted)
		}},
		{"segments that are still to be cut are judged by what they will be", func(w *world) {
			w.leaves(true)
			w.mtu(1400)
			w.opens(5000)
			fits := uint32(1400 - 40)
			if w.v6 {
				fits -= 20
			}
			in := tcp(w.client, 5000, w.outside, 443, big)
			w.send(gso(fromClient(), fits), in).leftAs(func(p uint16) frame { return tcp(w.host, p, w.outside, 443, big) })
			r := w.send(gso(fromClient(), fits+1), in)
			require.Equal(w, map[string]uint64{"too-big from-container": 1}, r.counted)
			require.Equal(w, uint32(verdictRedirect), r.verdict)
		}},
		{"the last hop but one leaves, the last is told of by the gateway", func(w *world) {
			w.leaves(true)
			in := udp(w.client, 5000, w.outside, 53, "q").hops(2)
			r := w.send(fromClient(), in)
			r.is(verdictRedirect, udp(w.host, r.sourcePort(), w.outside, 53, "q").hops(1).macs(r.in[:6], r.in[6:12]).bytes())
			in = in.hops(1)
			w.send(fromClient(), in).answered(exceeded(w, ip(w.gateway, w.client, 0, nil), in.quote()), "ttl")
		}},
		{"an answer of a published port is a packet of its backend's: it ages and is measured, too", func(w *world) {
			w.leaves(true)
			w.publish(w.host, 80, ProtocolTCP)
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, syn))
			w.mtu(1400)
			old := tcp(w.backend, 8080, w.outside, 5000, synAck).hops(1)
			w.send(fromBackend(), old).answered(exceeded(w, ip(w.gateway, w.backend, 0, nil), old.quote()), "ttl")
			large := tcp(w.backend, 8080, w.outside, 5000, big)
			w.send(fromBackend(), large).answered(w.tooBig(w.gateway, w.backend, 1400, large.quote()), "too-big")
			w.send(fromBackend(), tcp(w.backend, 8080, w.outside, 5000, synAck)).leftAs(func(uint16) frame { return tcp(w.host, 80, w.outside, 5000, synAck) })
		}},
		{"so is its datagram, whose head alone is answered when it is in fragments", func(w *world) {
			w.leaves(true)
			w.publish(w.host, 53, ProtocolUDP)
			w.send(fromOutside(), udp(w.outside, 5000, w.host, 53, "q"))
			w.mtu(1400)
			first, later := udp(w.backend, 8080, w.outside, 5000, string(make([]byte, 2900))).fragments(1440)
			quote := first.quote()
			if w.v6 { // its fragment header is one more
				quote = first.packet(first.body(w.backend, w.outside))[:56]
			}
			w.send(fromBackend(), first).answered(w.tooBig(w.gateway, w.backend, 1400, quote), "too-big")
			w.send(fromBackend(), later).dropped("too-big")
		}},
	})
}

// tooBig is the error of a router whose way on takes no packet larger than mtu.
func (w *world) tooBig(src, dst netip.Addr, mtu uint32, quoted []byte) frame {
	if w.v6 {
		return icmp(src, dst, 2, 0, mtu, quoted)
	}
	return icmp(src, dst, 3, 4, mtu, quoted)
}

// pingLeaves sends the client's ping outside and returns the id that it has there.
func (w *world) pingLeaves() uint16 {
	w.Helper()
	return w.leavesAs(echoOf(w.client, w.outside, 77, false), func(id uint16) frame { return echoOf(w.host, w.outside, id, false) })
}

func TestPingsOutside(t *testing.T) {
	both(t, []scenario{
		{"in fragments leave and are answered", func(w *world) {
			w.leaves(true)
			id := w.pingLeaves()
			first, later := echoOf(w.client, w.outside, 77, false).fragments(8)
			firstOut, laterOut := echoOf(w.host, w.outside, id, false).fragments(8)
			r := w.send(fromClient(), first)
			r.is(verdictRedirect, firstOut.hops(63).macs(r.in[:6], r.in[6:12]).bytes())
			r = w.send(fromClient(), later)
			r.is(verdictRedirect, laterOut.hops(63).macs(r.in[:6], r.in[6:12]).bytes())
			first, later = echoOf(w.outside, w.host, id, true).fragments(8)
			firstOut, laterOut = echoOf(w.outside, w.client, 77, true).fragments(8)
			w.send(fromOutside(), first).toClient(firstOut)
			w.send(fromOutside(), later).toClient(laterOut)
			require.Len(w, entries(w.TB, "snat"), 2)
		}},
		{"in fragments to who may be pinged reach it, and the answer leaves as it is", func(w *world) {
			w.leaves(true)
			require.NoError(w, testDP.PutEndpoint(Endpoint{
				Addr: w.backend, IfIndex: backendIf, Network: network1, Redirect: true, MAC: backendMAC, HostMAC: backendHostMAC, Ping: true,
			}))
			first, later := echo(w.outside, w.backend, false, "abcdefgh").fragments(8)
			w.send(fromOutside(), first).toBackend(first)
			w.send(fromOutside(), later).toBackend(later)
			for _, f := range func() []frame {
				a, b := echo(w.backend, w.outside, true, "abcdefgh").fragments(8)
				return []frame{a, b}
			}() {
				r := w.send(fromBackend(), f)
				r.is(verdictRedirect, f.hops(63).macs(r.in[:6], r.in[6:12]).bytes())
			}
		}},
		{"in fragments to a VIP are not answered: that takes whole ones", func(w *world) {
			w.leaves(true)
			w.web()
			first, later := echo(w.client, w.vip, false, "abcdefgh").fragments(8)
			r := w.send(fromClient(), first)
			require.Equal(w, map[string]uint64{"no-service from-container": 1}, r.counted)
			w.send(fromClient(), later).dropped("no-fragment-head")
		}},
		{"learn what routers say of them", func(w *world) {
			w.leaves(true)
			id := w.pingLeaves()
			sent, got := echoOf(w.host, w.outside, id, false).hops(1).quote(), echoOf(w.client, w.outside, 77, false).hops(1).quote()
			copy(got[len(got)-6:len(got)-4], sent[len(sent)-6:]) // the quoted checksum is the uplink's
			to := ip(w.router, w.host, 0, nil)
			back := ip(w.router, w.client, 0, nil)
			w.send(fromOutside(), exceeded(w, to, sent)).toClient(exceeded(w, back, got))
			w.send(fromOutside(), exceeded(w, to, echoOf(w.host, w.outside, id+1, false).quote())).untouched()
		}},
	})
}

func TestFragmentsOfFlowsOutside(t *testing.T) {
	long := string(make([]byte, 64))
	both(t, []scenario{
		{"of a published port, in and out", func(w *world) {
			w.leaves(true)
			w.publish(w.host, 53, ProtocolUDP)
			first, later := udp(w.outside, 5000, w.host, 53, long).fragments(32)
			firstOut, laterOut := udp(w.outside, 5000, w.backend, 8080, long).fragments(32)
			w.send(fromOutside(), first).toBackend(firstOut)
			w.send(fromOutside(), later).toBackend(laterOut)
			first, later = udp(w.backend, 8080, w.outside, 5000, long).fragments(32)
			firstOut, laterOut = udp(w.host, 53, w.outside, 5000, long).fragments(32)
			w.send(fromBackend(), first).leftAs(func(uint16) frame { return firstOut })
			w.send(fromBackend(), later).leftAs(func(uint16) frame { return laterOut })
			require.Empty(w, entries(w.TB, "snat"))
		}},
		{"without their head they do not leave, and are the host's when they come", func(w *world) {
			w.leaves(true)
			w.publish(w.host, 53, ProtocolUDP)
			_, later := udp(w.client, 5000, w.outside, 53, long).fragments(32)
			w.send(fromClient(), later).dropped("no-fragment-head")
			_, later = udp(w.outside, 5000, w.host, 53, long).fragments(32)
			w.send(fromOutside(), later).untouched()
			_, later = udp(w.outside, 5000, w.backend, 8080, long).fragments(32)
			w.send(fromOutside(), later).untouched()
			w.send(forwarded(), later).dropped("isolated to-container")
		}},
		{"another packet's are not taken along", func(w *world) {
			w.leaves(true)
			w.publish(w.host, 53, ProtocolUDP)
			first, later := udp(w.outside, 5000, w.host, 53, long).fragments(32)
			firstOut, _ := udp(w.outside, 5000, w.backend, 8080, long).fragments(32)
			w.send(fromOutside(), first).toBackend(firstOut)
			later.id++
			w.send(fromOutside(), later).untouched()
			later.id--
			later.saddr = w.stranger()
			w.send(fromOutside(), later).untouched()
		}},
	})
}
