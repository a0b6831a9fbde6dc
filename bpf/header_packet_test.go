// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestFragments(t *testing.T) {
	text := strings.Repeat("datagram ", 20)
	both(t, []scenario{
		{"later fragments of a request follow their head", func(w *world) {
			w.dns()
			first, later := udp(w.client, 5000, w.vip, 53, text).fragments(24)
			sentFirst, sentLater := udp(w.client, 5000, w.backend, 5353, text).fragments(24)
			w.send(fromClient(), first).toBackend(sentFirst)
			w.send(fromClient(), later).toBackend(sentLater)
		}},
		{"later fragments of a reply follow their head", func(w *world) {
			w.dns()
			w.send(fromClient(), udp(w.client, 5000, w.vip, 53, "q"))
			first, later := udp(w.backend, 5353, w.client, 5000, text).fragments(48)
			gotFirst, gotLater := udp(w.vip, 53, w.client, 5000, text).fragments(48)
			w.send(fromBackend(), first).toClient(gotFirst)
			w.send(fromBackend(), later).toClient(gotLater)
		}},
		{"later fragments of a reply from outside follow their head", func(w *world) {
			w.service(w.vip, 53, ProtocolUDP, w.backendAt(w.outside, 5353))
			w.send(fromClient(), udp(w.client, 5000, w.vip, 53, "q"))
			first, later := udp(w.outside, 5353, w.client, 5000, text).fragments(48)
			gotFirst, gotLater := udp(w.vip, 53, w.client, 5000, text).fragments(48)
			w.send(toClient(99), first).toStack(gotFirst)
			w.send(toClient(99), later).toStack(gotLater)
		}},
		{"a later fragment without its head is dropped", func(w *world) {
			w.dns()
			_, later := udp(w.client, 5000, w.vip, 53, text).fragments(24)
			w.send(fromClient(), later).dropped("no-fragment-head")
		}},
		{"a later fragment of another datagram is dropped", func(w *world) {
			w.dns()
			first, later := udp(w.client, 5000, w.vip, 53, text).fragments(24)
			w.send(fromClient(), first)
			later.id++
			w.send(fromClient(), later).dropped("no-fragment-head")
			later.id--
			later.proto = protoTCP
			w.send(fromClient(), later).dropped("no-fragment-head")
		}},
		{"a later fragment to an unknown address of the pool is dropped, never answered", func(w *world) {
			_, later := udp(w.client, 5000, w.poolOnly, 53, text).fragments(24)
			w.send(fromClient(), later).dropped("no-service")
		}},
		{"a head too small for its ports is malformed", func(w *world) {
			w.web()
			first, _ := w.request(data).fragments(8)
			w.send(fromClient(), first).dropped("malformed")
		}},
		{"fragments between endpoints pass as they are", func(w *world) {
			first, later := udp(w.client, 5000, w.backend, 53, text).fragments(24)
			w.send(fromClient(), first).toBackend(first)
			w.send(fromClient(), later).toBackend(later)
		}},
		{"a fragmented echo to a VIP is refused", func(w *world) {
			w.web()
			first, later := echo(w.client, w.vip, false, text).fragments(48)
			require.Contains(w, w.send(fromClient(), first).counted, "no-service from-container")
			w.send(fromClient(), later).dropped("no-fragment-head")
		}},
	})
	run(t, true, []scenario{
		{"an atomic fragment is a whole packet", func(w *world) {
			w.web()
			in, out := w.request(syn), w.sent(syn)
			in.hasFragment, out.hasFragment = true, true
			w.send(fromClient(), in).toBackend(out)
		}},
	})
}

func TestSegmentationOffload(t *testing.T) {
	offload := func() hook {
		h := fromClient()
		h.ctx.GsoSize, h.ctx.GsoSegs = 1000, 3
		return h
	}
	long := segment{flags: flagSYN, seq: 1, data: strings.Repeat("x", 2500)}
	both(t, []scenario{
		{"a packet of several segments is translated whole", func(w *world) {
			w.web()
			w.send(offload(), w.request(long)).toBackend(w.sent(long))
		}},
		{"BIG TCP, whose header says length 0, is translated", func(w *world) {
			w.web()
			in, out := w.request(long), w.sent(long)
			in.length, out.length = -1, -1
			w.send(offload(), in).toBackend(out)
		}},
		{"length 0 without offload is malformed", func(w *world) {
			w.web()
			in := w.request(syn)
			in.length = -1
			w.send(fromClient(), in).dropped("malformed")
		}},
		{"a refused packet of several segments is reset once", func(w *world) {
			w.web()
			s := long
			s.flags, s.ack = flagACK, 77
			w.send(offload(), w.request(s)).answered(tcp(w.vip, 80, w.client, 5000, segment{flags: flagRST, seq: 77}), "no-flow")
		}},
	})
}

func TestIPv4Options(t *testing.T) {
	options := []byte{7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0} // record route
	run(t, false, []scenario{
		{"options pass through translation", func(w *world) {
			w.web()
			in, out := w.request(syn), w.sent(syn)
			in.options, out.options = options, options
			w.send(fromClient(), in).toBackend(out)
		}},
		{"a reset has none", func(w *world) {
			w.web()
			in := tcp(w.client, 5000, w.vip, 81, syn)
			in.options = options
			w.send(fromClient(), in).
				answered(tcp(w.vip, 81, w.client, 5000, segment{flags: flagRST | flagACK, ack: 1001}), "no-service")
		}},
		{"a refusal quotes the header with its options and the ports behind it", func(w *world) {
			w.web()
			for n := 4; n <= 40; n += 4 {
				in := udp(w.client, 5000, w.vip, 81, "payload")
				in.options = slices.Repeat([]byte{1}, n)
				w.send(fromClient(), in).answered(unreachable(w.vip, w.client, true, in.quote()), "no-service")
			}
		}},
		{"a UDP checksum that is left out stays so", func(w *world) {
			w.dns()
			w.send(fromClient(), ip(w.client, w.vip, protoUDP, udpNoChecksum(5000, 53, "query"))).
				toBackend(ip(w.client, w.backend, protoUDP, udpNoChecksum(5000, 5353, "query")))
			w.send(fromBackend(), ip(w.backend, w.client, protoUDP, udpNoChecksum(5353, 5000, "answer"))).
				toClient(ip(w.vip, w.client, protoUDP, udpNoChecksum(53, 5000, "answer")))
		}},
	})
}

var (
	hopByHop    = []byte{extHopByHop, 0, 1, 4, 0, 0, 0, 0}
	destination = []byte{extDestination, 0, 1, 4, 0, 0, 0, 0}
	routing     = append([]byte{extRouting, 2, 4, 0}, make([]byte, 20)...)
)

func TestIPv6ExtensionHeaders(t *testing.T) {
	run(t, true, []scenario{
		{"headers in front of a segment are looked through", func(w *world) {
			w.web()
			for i, chain := range [][][]byte{
				{hopByHop}, {routing}, {destination}, {hopByHop, routing, destination},
				{hopByHop, destination, routing, destination, destination, destination},
			} {
				in := tcp(w.client, uint16(6000+i), w.vip, 80, syn)
				out := tcp(w.client, uint16(6000+i), w.backend, 8080, syn)
				in.ext, out.ext = chain, chain
				w.send(fromClient(), in).toBackend(out)
			}
		}},
		{"more than six of them are malformed", func(w *world) {
			w.web()
			in := w.request(syn)
			in.ext = slices.Repeat([][]byte{destination}, 7)
			w.send(fromClient(), in).dropped("malformed")
		}},
		{"fragments behind other headers follow their head", func(w *world) {
			w.dns()
			in, out := udp(w.client, 5000, w.vip, 53, "0123456789abcdef"), udp(w.client, 5000, w.backend, 5353, "0123456789abcdef")
			in.ext, out.ext = [][]byte{hopByHop}, [][]byte{hopByHop}
			first, later := in.fragments(16)
			outFirst, outLater := out.fragments(16)
			w.send(fromClient(), first).toBackend(outFirst)
			w.send(fromClient(), later).toBackend(outLater)
		}},
		{"an answer has no extension headers", func(w *world) {
			w.web()
			in := tcp(w.client, 5000, w.vip, 81, syn)
			in.ext = [][]byte{hopByHop, destination}
			w.send(fromClient(), in).
				answered(tcp(w.vip, 81, w.client, 5000, segment{flags: flagRST | flagACK, ack: 1001}), "no-service")
		}},
		{"a refusal quotes the headers and the ports behind them", func(w *world) {
			w.web()
			in := udp(w.client, 5000, w.vip, 81, "payload")
			in.ext = [][]byte{hopByHop, destination}
			quoted := in.packet(in.body(in.saddr, in.daddr))[:40+16+8]
			w.send(fromClient(), in).answered(unreachable(w.vip, w.client, true, quoted), "no-service")
		}},
		{"a header that is cut is malformed", func(w *world) {
			for n := range 8 {
				in := ip(w.client, w.vip, extDestination, raw(string(make([]byte, n))))
				w.send(fromClient(), in).dropped("malformed")
			}
			in := ip(w.client, w.vip, extDestination, raw("\x06\xff......"))
			w.send(fromClient(), in).dropped("malformed")
		}},
		{"no next header is a protocol like any other", func(w *world) {
			in := ip(w.client, w.backend, 59, raw(""))
			w.send(fromClient(), in).toBackend(in)
		}},
	})
}

func TestMalformed(t *testing.T) {
	hooks := map[string]func() hook{
		"malformed": fromClient, "malformed from-container": insideClient, "malformed to-container": func() hook { return toClient(0) },
	}
	each := func(w *world, in []byte) {
		w.Helper()
		for reason, h := range hooks {
			w.sendRaw(h(), in).dropped(strings.TrimSuffix(reason, " from-container"))
		}
	}
	change := func(b []byte, at int, value byte) []byte {
		b = slices.Clone(b)
		b[at] = value
		return b
	}
	both(t, []scenario{
		{"a frame cut anywhere is dropped", func(w *world) {
			w.web()
			in := w.request(data).macs(clientHostMAC, clientMAC).bytes()
			whole := 14 + 20 // with less the kernel refuses to run a program
			if w.v6 {
				whole = 14 + 40
			}
			for n := whole; n < len(in); n++ {
				each(w, in[:n])
			}
		}},
		{"a header of an upper protocol cut anywhere is dropped", func(w *world) {
			for proto, n := range map[uint8]int{protoTCP: 20, protoUDP: 8, protoICMP4: 8, protoICMP6: 8} {
				for i := range n {
					f := ip(w.client, w.vip, proto, raw(string(make([]byte, i)))).macs(clientHostMAC, clientMAC)
					each(w, f.bytes())
					f.trailer = 46 // bytes behind the packet are none of it
					each(w, f.bytes())
				}
			}
		}},
		{"a TCP header shorter than 20 bytes, or longer than its segment, is dropped", func(w *world) {
			for _, words := range []uint8{1, 2, 3, 4, 6, 15} {
				s := syn
				s.offset = words
				each(w, w.request(s).macs(clientHostMAC, clientMAC).bytes())
			}
		}},
		{"another version than the frame's type is dropped", func(w *world) {
			in := w.request(syn).macs(clientHostMAC, clientMAC).bytes()
			for v := range byte(16) {
				if (v == 4 && !w.v6) || (v == 6 && w.v6) {
					continue
				}
				each(w, change(in, 14, v<<4|in[14]&15))
			}
		}},
		{"a length beyond the frame is dropped", func(w *world) {
			for _, length := range []int{41 + 20, 1000, 65535} {
				f := w.request(syn).macs(clientHostMAC, clientMAC)
				f.length = length
				each(w, f.bytes())
			}
		}},
	})
	run(t, false, []scenario{
		{"a header length that lies is dropped", func(w *world) {
			in := w.request(syn).macs(clientHostMAC, clientMAC).bytes()
			for _, words := range []byte{0, 1, 4, 11, 15} {
				each(w, change(in, 14, 0x40|words))
			}
		}},
		{"a length shorter than the header is dropped", func(w *world) {
			for _, length := range []int{1, 19} {
				f := w.request(syn).macs(clientHostMAC, clientMAC)
				f.length = length
				each(w, f.bytes())
			}
		}},
	})
	run(t, true, []scenario{
		{"mapped addresses on the wire are dropped", func(w *world) {
			four := addressesOf(false)
			mapped := func(a netip.Addr) netip.Addr { return netip.AddrFrom16(a.As16()) }
			each(w, tcp(mapped(four.client), 5000, w.vip, 80, syn).macs(clientHostMAC, clientMAC).bytes())
			each(w, tcp(w.client, 5000, mapped(four.backend), 80, syn).macs(clientHostMAC, clientMAC).bytes())
		}},
	})
}

// The kernel takes the tag out of a frame before our hook sees it, which BPF_PROG_TEST_RUN does not: this
// frame goes through a real device.
func TestTaggedFrameFromAStrictInterface(t *testing.T) {
	w := newWorld(t, false)
	require.NoError(t, testDP.AttachLXC("mst-client", clientIf, HostEnd))
	attached, err := testDP.AttachedLXC()
	require.NoError(t, err)
	require.Equal(t, []string{"mst-client"}, attached)
	require.NoError(t, testDP.AttachLXC("mst-client", clientIf, HostEnd), "attaching again replaces the programs")

	peer, err := netlink.LinkByName("mst-client-p")
	require.NoError(t, err)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	in := echo(w.client, w.gateway, false, "ping").macs(clientHostMAC, clientMAC).bytes()
	in = slices.Insert(in, 12, 0x81, 0x00, 0x00, 0x05)
	require.NoError(t, unix.Sendto(fd, in, 0, &unix.SockaddrLinklayer{Ifindex: peer.Attrs().Index}))
	require.Eventually(t, func() bool { return w.drops()["vlan from-container"] == 1 }, 2e9, 1e7)

	require.NoError(t, testDP.DetachLXC("mst-client"))
	attached, err = testDP.AttachedLXC()
	require.NoError(t, err)
	require.Empty(t, attached)
	require.NoError(t, testDP.DetachLXC("mst-client"), "detaching what is not attached is no error")
}
