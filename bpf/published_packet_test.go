// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// publish makes a port of the host's lead to the backend's 8080; addr may be the unspecified one.
func (w *world) publish(addr netip.Addr, port uint16, proto Protocol) Service {
	w.Helper()
	w.lastService++
	s := Service{
		Frontend: Frontend{Addr: addr, Port: port, Protocol: proto}, ID: w.lastService, Published: true,
		Slots: []uint32{w.backendAt(w.backend, 8080)},
	}
	require.NoError(w, testDP.PutService(s))
	return s
}

func TestPublishedPorts(t *testing.T) {
	both(t, []scenario{
		{"a stream from outside reaches the backend with its own address, and so does the answer", func(w *world) {
			w.leaves(true)
			w.publish(everywhere(w), 80, ProtocolTCP)
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, syn)).toBackend(tcp(w.outside, 5000, w.backend, 8080, syn))
			w.send(fromBackend(), tcp(w.backend, 8080, w.outside, 5000, synAck)).leftAs(func(uint16) frame { return tcp(w.host, 80, w.outside, 5000, synAck) })
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, ack)).toBackend(tcp(w.outside, 5000, w.backend, 8080, ack))
			require.Empty(w, entries(w.TB, "snat"), "nothing is masqueraded")
		}},
		{"datagrams do, too, and move on when their backend is gone", func(w *world) {
			w.leaves(true)
			s := w.publish(w.host, 53, ProtocolUDP)
			w.send(fromOutside(), udp(w.outside, 5000, w.host, 53, "q")).toBackend(udp(w.outside, 5000, w.backend, 8080, "q"))
			w.send(fromBackend(), udp(w.backend, 8080, w.outside, 5000, "a")).leftAs(func(uint16) frame { return udp(w.host, 53, w.outside, 5000, "a") })
			s.Slots = []uint32{w.backendAt(w.backend2, 8080)}
			require.NoError(w, testDP.PutService(s))
			require.NoError(w, testDP.DeleteBackend(s.Slots[0]-1))
			w.send(fromOutside(), udp(w.outside, 5000, w.host, 53, "q")).toBackend2(udp(w.outside, 5000, w.backend2, 8080, "q"))
		}},
		{"other ports, protocols and addresses are the host's", func(w *world) {
			w.leaves(true)
			w.publish(w.host, 80, ProtocolTCP)
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 81, syn)).untouched()
			w.send(fromOutside(), udp(w.outside, 5000, w.host, 80, "q")).untouched()
			w.send(fromOutside(), tcp(w.outside, 5000, w.router, 80, syn)).untouched()
			w.send(fromOutside(), tcp(w.outside, 5000, w.backend, 8080, syn)).untouched()
		}},
		{"one address goes before all", func(w *world) {
			w.leaves(true)
			s := w.publish(everywhere(w), 80, ProtocolTCP)
			s.Frontend.Addr, s.Slots = w.host, []uint32{w.backendAt(w.backend2, 9090)}
			require.NoError(w, testDP.PutService(s))
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, syn)).toBackend2(tcp(w.outside, 5000, w.backend2, 9090, syn))
		}},
		{"a service that is not published stays inside", func(w *world) {
			w.leaves(true)
			s := w.publish(w.host, 80, ProtocolTCP)
			s.Published = false
			require.NoError(w, testDP.PutService(s))
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, syn)).untouched()
		}},
		{"a port without a backend is refused as a closed one", func(w *world) {
			w.leaves(true)
			w.withoutBackend(w.publish(w.host, 80, ProtocolTCP))
			w.withoutBackend(w.publish(everywhere(w), 53, ProtocolUDP))
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, syn)).
				answeredOutside(tcp(w.host, 80, w.outside, 5000, segment{flags: flagRST | flagACK, ack: 1001}), "no-backend")
			in := udp(w.outside, 5000, w.host, 53, "q")
			w.send(fromOutside(), in).answeredOutside(unreachable(w.host, w.outside, true, in.quote()), "no-backend")
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, ack)).untouched()
		}},
		{"who may not reach it does not learn that", func(w *world) {
			w.leaves(true)
			s := w.publish(w.host, 80, ProtocolTCP)
			s.Sources = []netip.Prefix{}
			w.withoutBackend(s)
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, syn)).dropped("source to-container")
		}},
		{"a family that the backend lacks is passed on by the host", func(w *world) {
			w.leaves(true)
			w.withoutBackend(w.publish(everywhere(&world{addresses: addressesOf(!w.v6)}), 80, ProtocolTCP))
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, syn)).untouched()
		}},
		{"a segment in the middle of a stream that nobody knows is the host's to reset", func(w *world) {
			w.leaves(true)
			w.publish(w.host, 80, ProtocolTCP)
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, ack)).untouched()
		}},
		{"an error about an answer reaches the backend", func(w *world) {
			w.leaves(true)
			w.publish(w.host, 80, ProtocolTCP)
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, syn)).toBackend(tcp(w.outside, 5000, w.backend, 8080, syn))
			sent, got := tcp(w.host, 80, w.outside, 5000, synAck), tcp(w.backend, 8080, w.outside, 5000, synAck)
			w.send(fromOutside(), unreachable(w.router, w.host, false, sent.quote())).toBackend(unreachable(w.router, w.backend, false, got.quote()))
		}},
		{"what the host's stack could make a request of, and nobody can judge here, is dropped", func(w *world) {
			w.leaves(true)
			s := w.publish(everywhere(w), 80, ProtocolTCP)
			s.Sources = []netip.Prefix{}
			require.NoError(w, testDP.PutService(s))
			for dst, drops := range map[netip.Addr]bool{w.host: true, w.router: false} {
				for _, f := range evasions(w.outside, dst) {
					if r := w.send(fromOutside(), f); drops {
						r.dropped("malformed to-container")
					} else {
						r.untouched()
					}
				}
			}
		}},
		{"tagged frames pass as they are", func(w *world) {
			w.leaves(true)
			w.publish(w.host, 80, ProtocolTCP)
			in := tcp(w.outside, 5000, w.host, 80, syn).macs(clientHostMAC, clientMAC).bytes()
			in[12], in[13] = 0x81, 0
			w.sendRaw(fromOutside(), in).untouched()
		}},
	})
}

func TestPublishedFlowsEnd(t *testing.T) {
	both(t, []scenario{
		{"a client that uses a closed tuple again gets a backend anew", func(w *world) {
			w.leaves(true)
			s := w.publish(w.host, 80, ProtocolTCP)
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, syn)).toBackend(tcp(w.outside, 5000, w.backend, 8080, syn))
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, fin)).toBackend(tcp(w.outside, 5000, w.backend, 8080, fin))
			w.send(fromBackend(), tcp(w.backend, 8080, w.outside, 5000, fin)).leftAs(func(uint16) frame { return tcp(w.host, 80, w.outside, 5000, fin) })
			s.Slots = []uint32{w.backendAt(w.backend2, 8080)}
			require.NoError(w, testDP.PutService(s))
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, ack)).toBackend(tcp(w.outside, 5000, w.backend, 8080, ack))
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, syn)).toBackend2(tcp(w.outside, 5000, w.backend2, 8080, syn))
		}},
		{"one that is silent for longer than its state allows is the host's to reset", func(w *world) {
			w.leaves(true)
			w.publish(w.host, 80, ProtocolTCP)
			in := tcp(w.outside, 5000, w.host, 80, syn)
			w.send(fromOutside(), in).toBackend(tcp(w.outside, 5000, w.backend, 8080, syn))
			w.age(in, dirRequest, 21)
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, ack)).untouched()
		}},
		{"answers go on when the port is published no more, new flows do not come in", func(w *world) {
			w.leaves(true)
			s := w.publish(w.host, 80, ProtocolTCP)
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, syn)).toBackend(tcp(w.outside, 5000, w.backend, 8080, syn))
			require.NoError(w, testDP.DeleteService(s.Frontend))
			w.send(fromBackend(), tcp(w.backend, 8080, w.outside, 5000, synAck)).leftAs(func(uint16) frame { return tcp(w.host, 80, w.outside, 5000, synAck) })
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, data)).toBackend(tcp(w.outside, 5000, w.backend, 8080, data))
			w.send(fromOutside(), tcp(w.outside, 5001, w.host, 80, syn)).untouched()
		}},
		{"a masqueraded flow and a published one share a peer's port and the host's", func(w *world) {
			w.leaves(true)
			p := w.leavesAs(udp(w.client, 5000, w.outside, 53, "q"), func(p uint16) frame { return udp(w.host, p, w.outside, 53, "q") })
			w.publish(w.host, p, ProtocolUDP) // published later than the flow began
			w.send(fromOutside(), udp(w.outside, 53, w.host, p, "a")).toClient(udp(w.outside, 53, w.client, 5000, "a"))
			w.send(fromOutside(), udp(w.outside, 54, w.host, p, "q")).toBackend(udp(w.outside, 54, w.backend, 8080, "q"))
		}},
	})
}

// A priority is no VLAN: the host's stack takes such a frame as if it had no tag. As in
// TestTaggedFrameFromAStrictInterface, only a real device takes tags out.
func TestPriorityTaggedFrameFromOutside(t *testing.T) {
	w := newWorld(t, false)
	w.leaves(true)
	s := w.publish(everywhere(w), 80, ProtocolTCP)
	s.Sources = []netip.Prefix{}
	require.NoError(t, testDP.PutService(s))
	require.NoError(t, testDP.AttachLXC("mst-uplink", uplinkIf, UplinkEnd))
	defer testDP.DetachLXC("mst-uplink")
	peer, err := netlink.LinkByName("mst-uplink-p")
	require.NoError(t, err)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	const vlan, priority = 0x05, 0xe0 // of a tag's two bytes
	for _, tag := range [][2]byte{{0, vlan}, {priority, 0}} {
		in := tcp(w.outside, 5000, w.host, 80, syn).macs(broadcastMAC, mac(0x99)).bytes()
		in = slices.Insert(in, 12, 0x81, 0, tag[0], tag[1])
		require.NoError(t, unix.Sendto(fd, in, 0, &unix.SockaddrLinklayer{Ifindex: peer.Attrs().Index}))
	}
	require.Eventually(t, func() bool { return w.drops()["source to-container"] > 0 }, 2e9, 1e7)
	require.Equal(t, uint64(1), w.drops()["source to-container"], "the VLAN's frame is not for us")
}

// withoutBackend leaves a service none.
func (w *world) withoutBackend(s Service) {
	w.Helper()
	s.Slots = nil
	require.NoError(w, testDP.PutService(s))
}

// answeredOutside says that out goes back by the uplink, because of a reason.
func (r result) answeredOutside(out frame, reason string) {
	r.w.Helper()
	out.id = 0
	r.is(verdictRedirect, out.macs(r.in[6:12], r.in[:6]).bytes(), reason+" to-container")
}

// evasions are requests that the stack understands once it has put them together, or looked far enough.
func evasions(src, dst netip.Addr) []frame {
	long := syn
	long.offset, long.data = 15, string(make([]byte, 40))
	short, _ := tcp(src, 5000, dst, 80, syn).fragments(8)
	cut, _ := tcp(src, 5000, dst, 80, long).fragments(24)
	list := []frame{short, cut}
	if !dst.Is6() {
		return list
	}
	chain, hidden := tcp(src, 5000, dst, 80, syn), tcp(src, 5000, dst, 80, syn)
	for range 7 {
		chain.ext = append(chain.ext, []byte{extDestination, 0, 1, 4, 0, 0, 0, 0})
	}
	// the first fragment ends with options that the ports come after
	hidden.proto, hidden.hasFragment, hidden.fragment = extDestination, true, 1
	hidden.body = func(netip.Addr, netip.Addr) []byte { return []byte{protoTCP, 0, 1, 4, 0, 0, 0, 0} }
	return append(list, chain, hidden)
}
