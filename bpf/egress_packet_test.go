// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
)

// leaves lets the client and the backend leave the host by the uplink.
func (w *world) leaves(masq bool) {
	w.Helper()
	four, six := addressesOf(false), addressesOf(true)
	for index, hostMAC := range map[int][]byte{clientIf: clientHostMAC, backendIf: backendHostMAC} {
		require.NoError(w, testDP.PutInterface(Interface{
			IfIndex: index, Network: network1, Strict: true, Egress: true, Masq4: masq, Masq6: masq,
			Gateway4: four.gateway, Gateway6: six.gateway, MAC: hostMAC,
		}))
	}
	require.NoError(w, testDP.PutUplink(Uplink{IfIndex: uplinkIf, SNAT4: four.host, SNAT6: six.host}))
	for _, a := range []addresses{four, six} {
		require.NoError(w, testDP.PutEndpoint(Endpoint{Addr: a.host, Host: true}))
	}
}

// fromOutside is the ingress of the uplink.
func fromOutside() hook { return hook{"host_ingress", at(uplinkIf, uplinkIf)} }

// leftAs says that a packet left by the uplink as want, one hop older, and returns its source port.
func (r result) leftAs(want func(port uint16) frame) uint16 {
	r.w.Helper()
	port := r.sourcePort()
	if f := want(0); f.proto == protoICMP4 || f.proto == protoICMP6 {
		at := 14 + 20 + 4
		if r.w.v6 {
			at += 20
		}
		port = binary.BigEndian.Uint16(r.out[at:])
	}
	out := want(port).hops(63)
	// the link-layer addresses are the neighbour's, written on delivery
	r.is(verdictRedirect, out.macs(r.in[:6], r.in[6:12]).bytes())
	return port
}

// echoOf is a ping with an id of its own.
func echoOf(src, dst netip.Addr, id uint16, reply bool) frame {
	f := echo(src, dst, reply, "abcdefgh")
	body := f.body
	f.body = func(src, dst netip.Addr) []byte {
		b := body(src, dst)
		old := binary.BigEndian.Uint16(b[4:])
		binary.BigEndian.PutUint16(b[4:], id)
		sum := uint32(^binary.BigEndian.Uint16(b[2:])) + uint32(^old) + uint32(id) // RFC 1624
		sum = sum>>16 + sum&0xffff
		sum = sum>>16 + sum&0xffff
		binary.BigEndian.PutUint16(b[2:], ^uint16(sum))
		return b
	}
	return f
}

func TestEgress(t *testing.T) {
	both(t, []scenario{
		{"a stream leaves with the uplink's address and its replies come back", func(w *world) {
			w.leaves(true)
			p := w.send(fromClient(), tcp(w.client, 5000, w.outside, 443, syn)).leftAs(func(p uint16) frame { return tcp(w.host, p, w.outside, 443, syn) })
			require.GreaterOrEqual(w, p, uint16(61000))
			w.send(fromOutside(), tcp(w.outside, 443, w.host, p, synAck)).toClient(tcp(w.outside, 443, w.client, 5000, synAck))
			again := w.send(fromClient(), tcp(w.client, 5000, w.outside, 443, ack)).leftAs(func(p uint16) frame { return tcp(w.host, p, w.outside, 443, ack) })
			require.Equal(w, p, again)
		}},
		{"datagrams and pings do, too", func(w *world) {
			w.leaves(true)
			p := w.send(fromClient(), udp(w.client, 5000, w.outside, 53, "q")).leftAs(func(p uint16) frame { return udp(w.host, p, w.outside, 53, "q") })
			w.send(fromOutside(), udp(w.outside, 53, w.host, p, "a")).toClient(udp(w.outside, 53, w.client, 5000, "a"))
			id := w.send(fromClient(), echoOf(w.client, w.outside, 77, false)).leftAs(func(id uint16) frame { return echoOf(w.host, w.outside, id, false) })
			w.send(fromOutside(), echoOf(w.outside, w.host, id, true)).toClient(echoOf(w.outside, w.client, 77, true))
		}},
		{"two containers with one source port have two outside", func(w *world) {
			w.leaves(true)
			one := w.send(fromClient(), udp(w.client, 5000, w.outside, 53, "q")).leftAs(func(p uint16) frame { return udp(w.host, p, w.outside, 53, "q") })
			two := w.send(fromBackend(), udp(w.backend, 5000, w.outside, 53, "q")).leftAs(func(p uint16) frame { return udp(w.host, p, w.outside, 53, "q") })
			require.NotEqual(w, one, two)
			w.send(fromOutside(), udp(w.outside, 53, w.host, two, "a")).toBackend(udp(w.outside, 53, w.backend, 5000, "a"))
		}},
		{"without masquerading the address stays", func(w *world) {
			w.leaves(false)
			w.send(fromClient(), udp(w.client, 5000, w.outside, 53, "q")).leftAs(func(uint16) frame { return udp(w.client, 5000, w.outside, 53, "q") })
		}},
		{"a network without egress leads nowhere", func(w *world) {
			in := udp(w.client, 5000, w.outside, 53, "q")
			r := w.send(fromClient(), in)
			require.Equal(w, map[string]uint64{"no-route from-container": 1}, r.counted)
		}},
		{"a route that leads to no uplink is the stack's", func(w *world) {
			w.leaves(true)
			require.NoError(w, testDP.DeleteUplink(uplinkIf))
			w.send(fromClient(), udp(w.client, 5000, w.outside, 53, "q")).untouched()
		}},
		{"the host itself is the stack's", func(w *world) {
			w.leaves(true)
			w.send(fromClient(), tcp(w.client, 5000, w.host, 22, syn)).untouched()
		}},
		{"a packet that has no hop left is answered by the gateway", func(w *world) {
			w.leaves(true)
			in := udp(w.client, 5000, w.outside, 53, "q").hops(1)
			r := w.send(fromClient(), in)
			require.Equal(w, map[string]uint64{"ttl from-container": 1}, r.counted)
			require.Equal(w, uint32(verdictRedirect), r.verdict)
			at, typ := 14+20, byte(11)
			if w.v6 {
				at, typ = 14+40, 3
			}
			require.Equal(w, []byte{typ, 0}, r.out[at:at+2])
			require.Equal(w, w.gateway.AsSlice(), r.out[at-2*len(w.gateway.AsSlice()):][:len(w.gateway.AsSlice())])
		}},
		{"a packet larger than the way out is answered with the way's MTU", func(w *world) {
			w.leaves(true)
			w.mtu(1400)
			in := udp(w.client, 5000, w.outside, 53, string(make([]byte, 1420)))
			r := w.send(fromClient(), in)
			require.Equal(w, map[string]uint64{"too-big from-container": 1}, r.counted)
			at, want := 14+20, []byte{3, 4}
			if w.v6 {
				at, want = 14+40, []byte{2, 0}
			}
			require.Equal(w, want, r.out[at:at+2])
			require.Equal(w, uint32(1400), binary.BigEndian.Uint32(r.out[at+4:]))
		}},
		{"an error about what left reaches the container that sent it", func(w *world) {
			w.leaves(true)
			p := w.send(fromClient(), tcp(w.client, 5000, w.outside, 443, syn)).leftAs(func(p uint16) frame { return tcp(w.host, p, w.outside, 443, syn) })
			sent := tcp(w.host, p, w.outside, 443, syn).hops(60)
			got := tcp(w.client, 5000, w.outside, 443, syn).hops(60)
			w.send(fromOutside(), unreachable(w.router, w.host, true, sent.quote())).toClient(unreachable(w.router, w.client, true, got.quote()))
		}},
		{"an error about what nobody sent is the host's", func(w *world) {
			w.leaves(true)
			w.send(fromOutside(), unreachable(w.router, w.host, true, udp(w.host, 61001, w.outside, 53, "q").quote())).untouched()
		}},
		{"what nobody asked for is the host's", func(w *world) {
			w.leaves(true)
			w.send(fromOutside(), tcp(w.outside, 443, w.host, 61001, synAck)).untouched()
			w.send(fromOutside(), echoOf(w.outside, w.host, 5, false)).untouched()
			w.send(fromOutside(), udp(w.outside, 53, w.client, 5000, "a")).untouched()
		}},
		{"a VIP is nobody's outside of the host", func(w *world) {
			w.leaves(true)
			w.web()
			w.send(fromOutside(), tcp(w.outside, 443, w.vip, 80, syn)).dropped("off-host to-container")
		}},
		{"a VIP whose backend is outside answers as itself", func(w *world) {
			w.leaves(true)
			id := w.backendAt(w.outside, 9000)
			w.service(w.vip, 80, ProtocolTCP, id)
			w.service(w.vip, 53, ProtocolUDP, id)
			p := w.send(fromClient(), w.request(syn)).leftAs(func(p uint16) frame { return tcp(w.host, p, w.outside, 9000, syn) })
			w.send(fromOutside(), tcp(w.outside, 9000, w.host, p, synAck)).toClient(tcp(w.vip, 80, w.client, 5000, synAck))
			sent, got := tcp(w.host, p, w.outside, 9000, syn).hops(60), w.request(syn).hops(60)
			w.send(fromOutside(), unreachable(w.router, w.host, false, sent.quote())).
				toClient(unreachable(w.router, w.client, false, got.quote()))
			p = w.send(fromClient(), udp(w.client, 5000, w.vip, 53, "q")).leftAs(func(p uint16) frame { return udp(w.host, p, w.outside, 9000, "q") })
			first, later := udp(w.outside, 9000, w.host, p, string(make([]byte, 64))).fragments(32)
			firstOut, laterOut := udp(w.vip, 53, w.client, 5000, string(make([]byte, 64))).fragments(32)
			w.send(fromOutside(), first).toClient(firstOut)
			w.send(fromOutside(), later).toClient(laterOut)
		}},
		{"the backend outside answers as itself to who asked it so", func(w *world) {
			w.leaves(true)
			w.service(w.vip, 80, ProtocolTCP, w.backendAt(w.outside, 9000))
			w.send(fromClient(), w.request(syn))
			p := w.send(fromClient(), tcp(w.client, 5001, w.outside, 9000, syn)).leftAs(func(p uint16) frame { return tcp(w.host, p, w.outside, 9000, syn) })
			w.send(fromOutside(), tcp(w.outside, 9000, w.host, p, synAck)).toClient(tcp(w.outside, 9000, w.client, 5001, synAck))
		}},
		{"fragments follow their head, both ways", func(w *world) {
			w.leaves(true)
			in := udp(w.client, 5000, w.outside, 53, string(make([]byte, 64)))
			first, later := in.fragments(32)
			r := w.send(fromClient(), first)
			if w.v6 { // past the fragment header
				r.out = slices.Delete(slices.Clone(r.out), 14+40, 14+48)
			}
			p := r.sourcePort()
			out := udp(w.host, p, w.outside, 53, string(make([]byte, 64)))
			_, laterOut := out.fragments(32)
			w.send(fromClient(), later).leftAs(func(uint16) frame { return laterOut })
			back := udp(w.outside, 53, w.host, p, string(make([]byte, 64)))
			back.id = 0x77
			firstBack, laterBack := back.fragments(32)
			want := udp(w.outside, 53, w.client, 5000, string(make([]byte, 64)))
			want.id = 0x77
			wantFirst, wantLater := want.fragments(32)
			w.send(fromOutside(), firstBack).toClient(wantFirst)
			w.send(fromOutside(), laterBack).toClient(wantLater)
		}},
		{"when a server has no port left for us that is counted, not waited for", func(w *world) {
			w.leaves(true)
			for p := 61000; p <= 65535; p++ {
				key := mstTuple{Saddr: addrOf(w.outside), Daddr: addrOf(w.host), Sport: be(53), Dport: be(uint16(p)), Proto: protoUDP, Dir: dirReply}
				require.NoError(w, testDP.maps["snat"].Put(&key, &mstCt{}))
			}
			w.send(fromClient(), udp(w.client, 5000, w.outside, 53, "q")).dropped("snat-ports")
			w.send(fromClient(), udp(w.client, 5000, w.outside, 54, "q")).leftAs(func(p uint16) frame { return udp(w.host, p, w.outside, 54, "q") })
		}},
		{"a container that begins too many flows is held back, alone", func(w *world) {
			w.leaves(true)
			require.NoError(w, testDP.maps["quotas"].Put(uint32(clientIf), uint32(16384)))
			w.send(fromClient(), udp(w.client, 5000, w.outside, 53, "q")).dropped("snat-quota")
			w.send(fromBackend(), udp(w.backend, 5000, w.outside, 53, "q")).leftAs(func(p uint16) frame { return udp(w.host, p, w.outside, 53, "q") })
		}},
		{"flows that are over are collected both ways, and counted anew", func(w *world) {
			w.leaves(true)
			for port := range uint16(3) {
				w.send(fromClient(), udp(w.client, 5000+port, w.outside, 53, "q"))
			}
			require.Len(w, entries(w.TB, "snat"), 6)
			old := w.send(fromClient(), udp(w.client, 5001, w.outside, 53, "q")).sourcePort()
			w.agePart(func(k *mstTuple) bool { return k.Sport == be(5001) || k.Dport == be(old) }, 301e9)
			require.NoError(w, testDP.CollectFlows())
			require.Len(w, entries(w.TB, "snat"), 4)
			var n uint32
			require.NoError(w, testDP.maps["quotas"].Lookup(uint32(clientIf), &n))
			require.Equal(w, uint32(2), n)
			w.agePart(func(k *mstTuple) bool { return k.Dir == dirRequest }, 301e9)
			require.NoError(w, testDP.CollectFlows())
			require.Len(w, entries(w.TB, "snat"), 4, "replies still come")
		}},
	})
}

// mtu sets that of the uplink for one test.
func (w *world) mtu(n int) {
	w.Helper()
	set := func(n int) {
		l, err := netlink.LinkByIndex(uplinkIf)
		require.NoError(w, err)
		require.NoError(w, netlink.LinkSetMTU(l, n))
	}
	set(n)
	w.Cleanup(func() { set(1500) })
}

// agePart makes entries of mst_snat older.
func (w *world) agePart(match func(*mstTuple) bool, ns uint64) {
	w.Helper()
	w.changeFlows(match, func(v *mstCt) { v.Seen -= ns })
}

// changeFlows changes entries of masqueraded flows.
func (w *world) changeFlows(match func(*mstTuple) bool, change func(*mstCt)) {
	w.Helper()
	var key mstTuple
	var v mstCt
	var keys []mstTuple
	it := testDP.maps["snat"].Iterate()
	for it.Next(&key, &v) {
		if match(&key) {
			keys = append(keys, key)
		}
	}
	require.NoError(w, it.Err())
	for _, k := range slices.Clone(keys) {
		require.NoError(w, testDP.maps["snat"].Lookup(&k, &v))
		change(&v)
		require.NoError(w, testDP.maps["snat"].Put(&k, &v))
	}
}
