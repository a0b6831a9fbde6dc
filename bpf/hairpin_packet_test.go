// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestPublishedToContainers: what a container sends to a published port of the host's, where no socket hook
// translated it.
func TestPublishedToContainers(t *testing.T) {
	both(t, []scenario{
		{"a backend of the same network is reached, and answers as the host", func(w *world) {
			w.leaves(true)
			w.publish(everywhere(w), 80, ProtocolTCP)
			w.send(fromClient(), tcp(w.client, 5000, w.host, 80, syn)).toBackend(tcp(w.client, 5000, w.backend, 8080, syn))
			w.send(fromBackend(), tcp(w.backend, 8080, w.client, 5000, synAck)).toClient(tcp(w.host, 80, w.client, 5000, synAck))
			w.send(fromClient(), tcp(w.client, 5000, w.host, 80, data)).toBackend(tcp(w.client, 5000, w.backend, 8080, data))
		}},
		{"so is one of another network, by its published port only", func(w *world) {
			w.leaves(true)
			w.movesOut()
			w.publish(w.host, 80, ProtocolTCP)
			w.send(fromClient(), tcp(w.client, 5000, w.backend, 8080, syn)).dropped("isolated")
			w.send(fromClient(), tcp(w.client, 5000, w.host, 80, syn)).toBackend(tcp(w.client, 5000, w.backend, 8080, syn))
			w.send(fromBackend(), tcp(w.backend, 8080, w.client, 5000, synAck)).toClient(tcp(w.host, 80, w.client, 5000, synAck))
			w.send(fromBackend(), tcp(w.backend, 8081, w.client, 5000, synAck)).dropped("isolated")
		}},
		{"datagrams are, too, and move on when their backend is gone", func(w *world) {
			w.leaves(true)
			w.movesOut()
			s := w.publish(w.host, 53, ProtocolUDP)
			w.send(fromClient(), udp(w.client, 5000, w.host, 53, "q")).toBackend(udp(w.client, 5000, w.backend, 8080, "q"))
			w.send(fromBackend(), udp(w.backend, 8080, w.client, 5000, "a")).toClient(udp(w.host, 53, w.client, 5000, "a"))
			s.Slots = []uint32{w.backendAt(w.backend2, 8080)}
			require.NoError(w, testDP.PutService(s))
			require.NoError(w, testDP.DeleteBackend(s.Slots[0]-1))
			w.send(fromClient(), udp(w.client, 5000, w.host, 53, "q")).toBackend2(udp(w.client, 5000, w.backend2, 8080, "q"))
		}},
		{"a container that calls its own port reaches itself, by a port that no socket of the host's has", func(w *world) {
			w.leaves(true)
			w.publish(everywhere(w), 80, ProtocolTCP)
			w.publish(everywhere(w), 53, ProtocolUDP)
			p := w.send(fromBackend(), tcp(w.backend, 5000, w.host, 80, syn)).sourcePort()
			require.GreaterOrEqual(w, p, uint16(61000))
			w.send(fromBackend(), tcp(w.backend, 5000, w.host, 80, data)).toBackend(tcp(w.host, p, w.backend, 8080, data))
			w.send(fromBackend(), tcp(w.backend, 8080, w.host, p, synAck)).toBackend(tcp(w.host, 80, w.backend, 5000, synAck))
			p = w.send(fromBackend(), udp(w.backend, 5000, w.host, 53, "q")).sourcePort()
			w.send(fromBackend(), udp(w.backend, 8080, w.host, p, "a")).toBackend(udp(w.host, 53, w.backend, 5000, "a"))
			w.send(fromBackend(), tcp(w.backend, 8080, w.host, 5000, synAck)).untouched() // the host's own stream
		}},
		{"an error of the backend names the host", func(w *world) {
			w.leaves(true)
			w.movesOut()
			w.publish(w.host, 80, ProtocolTCP)
			sent := tcp(w.client, 5000, w.backend, 8080, syn)
			w.send(fromClient(), tcp(w.client, 5000, w.host, 80, syn)).toBackend(sent)
			w.send(fromBackend(), unreachable(w.backend, w.client, true, sent.quote())).
				toClient(unreachable(w.host, w.client, true, tcp(w.client, 5000, w.host, 80, syn).quote()))
		}},
		{"fragments follow their head", func(w *world) {
			w.leaves(true)
			w.publish(w.host, 53, ProtocolUDP)
			first, later := udp(w.client, 5000, w.host, 53, string(make([]byte, 64))).fragments(32)
			firstOut, laterOut := udp(w.client, 5000, w.backend, 8080, string(make([]byte, 64))).fragments(32)
			w.send(fromClient(), first).toBackend(firstOut)
			w.send(fromClient(), later).toBackend(laterOut)
			later.id++
			w.send(fromClient(), later).untouched()
		}},
		{"ports that nobody published are the host's, and one without a backend is refused", func(w *world) {
			w.leaves(true)
			s := w.publish(w.host, 80, ProtocolTCP)
			w.send(fromClient(), tcp(w.client, 5000, w.host, 81, syn)).untouched()
			w.send(fromClient(), udp(w.client, 5000, w.host, 80, "q")).untouched()
			w.send(fromClient(), tcp(w.client, 5000, w.host, 80, ack)).untouched()
			w.send(fromClient(), echo(w.client, w.host, false, "ping")).untouched()
			w.withoutBackend(s)
			w.send(fromClient(), tcp(w.client, 5000, w.host, 80, syn)).
				answered(tcp(w.host, 80, w.client, 5000, segment{flags: flagRST | flagACK, ack: 1001}), "no-backend")
		}},
		{"a network that leads nowhere out reaches no port, by no address of the host's", func(w *world) {
			w.leaves(true)
			w.shut()
			require.NoError(w, testDP.PutEndpoint(Endpoint{Addr: w.gateway, Host: true}))
			w.publish(everywhere(w), 80, ProtocolTCP)
			w.publish(everywhere(w), 53, ProtocolUDP)
			for _, a := range []netip.Addr{w.host, w.gateway} {
				w.send(fromClient(), tcp(w.client, 5000, a, 80, syn)).dropped("isolated")
				w.send(fromClient(), udp(w.client, 5000, a, 53, "q")).dropped("isolated")
			}
			w.send(fromClient(), tcp(w.client, 5000, w.gateway, 81, syn)).untouched()
		}},
		{"nor one that is published in the other family alone, which the host holds in both", func(w *world) {
			w.leaves(true)
			w.shut()
			require.NoError(w, testDP.PutEndpoint(Endpoint{Addr: w.gateway, Host: true}))
			other := addressesOf(!w.v6)
			w.publish(everywhere(&world{addresses: other}), 80, ProtocolTCP)
			w.publish(other.host, 81, ProtocolTCP)
			w.send(fromClient(), tcp(w.client, 5000, w.gateway, 80, syn)).dropped("isolated")
			for _, f := range []frame{
				udp(w.client, 5000, w.gateway, 80, "q"), tcp(w.client, 5000, w.gateway, 81, syn), echo(w.client, w.gateway, false, "ping"),
			} {
				w.send(fromClient(), f).untouched()
			}
		}},
		{"nor one that a container in another network has at its own address", func(w *world) {
			w.leaves(true)
			w.movesOut()
			w.publish(w.backend, 8080, ProtocolTCP)
			w.shut()
			w.send(fromClient(), tcp(w.client, 5000, w.backend, 8080, syn)).dropped("isolated")
		}},
		{"a sandbox made by hand reaches them", func(w *world) {
			w.leaves(true)
			require.NoError(w, testDP.DeleteInterface(clientIf))
			w.publish(w.host, 80, ProtocolTCP)
			w.send(fromClient(), tcp(w.client, 5000, w.host, 80, syn)).toBackend(tcp(w.client, 5000, w.backend, 8080, syn))
		}},
	})
}

// movesOut puts the backend's sandbox into a network of its own that leads out.
func (w *world) movesOut() {
	w.Helper()
	w.movesTo(network2)
	require.NoError(w, testDP.PutInterface(Interface{
		IfIndex: backendIf, Network: network2, Strict: true, Egress: true, Masq4: true, Masq6: true, MAC: backendHostMAC,
	}))
}

// shut makes the client's network one that leads nowhere out.
func (w *world) shut() {
	w.Helper()
	four, six := addressesOf(false), addressesOf(true)
	require.NoError(w, testDP.PutInterface(Interface{
		IfIndex: clientIf, Network: network1, Strict: true, Gateway4: four.gateway, Gateway6: six.gateway, MAC: clientHostMAC,
	}))
}

// everywhere is the frontend's address that stands for all of the host's.
func everywhere(w *world) netip.Addr {
	if w.v6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

func TestPublishSources(t *testing.T) {
	restrict := func(w *world, s Service, prefixes ...string) Service {
		w.Helper()
		s.Sources = []netip.Prefix{}
		for _, p := range prefixes {
			s.Sources = append(s.Sources, netip.MustParsePrefix(p))
		}
		require.NoError(w, testDP.PutService(s))
		return s
	}
	lan := func(w *world) string { return netip.PrefixFrom(w.outside, w.outside.BitLen()/2).Masked().String() }
	both(t, []scenario{
		{"who is in a prefix reaches the port, others are dropped", func(w *world) {
			w.leaves(true)
			restrict(w, w.publish(everywhere(w), 80, ProtocolTCP), lan(w))
			restrict(w, w.publish(everywhere(w), 53, ProtocolUDP), lan(w))
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, syn)).toBackend(tcp(w.outside, 5000, w.backend, 8080, syn))
			w.send(fromOutside(), udp(w.outside, 5000, w.host, 53, "q")).toBackend(udp(w.outside, 5000, w.backend, 8080, "q"))
			w.send(fromOutside(), tcp(w.stranger(), 5000, w.host, 80, syn)).dropped("source to-container")
			w.send(fromOutside(), udp(w.stranger(), 5000, w.host, 53, "q")).dropped("source to-container")
			require.Nil(w, w.ct(tcp(w.stranger(), 5000, w.host, 80, syn), dirRequest))
		}},
		{"a service that lists nobody lets in nobody, one of the other family neither", func(w *world) {
			w.leaves(true)
			s := restrict(w, w.publish(w.host, 80, ProtocolTCP))
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, syn)).dropped("source to-container")
			restrict(w, s, map[bool]string{false: "2001:db8::/16", true: "0.0.0.0/0"}[w.v6])
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, syn)).dropped("source to-container")
			restrict(w, s, map[bool]string{false: "0.0.0.0/0", true: "::/0"}[w.v6])
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, syn)).toBackend(tcp(w.outside, 5000, w.backend, 8080, syn))
		}},
		{"all of IPv6 is nobody of IPv4, and all of IPv4 nobody of IPv6", func(w *world) {
			w.leaves(true)
			in := map[bool]string{false: "198.51.100.0/24", true: "2001:db8::/32"}[w.v6]
			others := map[bool]string{false: "::/0", true: "0.0.0.0/0"}[w.v6]
			s := restrict(w, w.publish(w.host, 80, ProtocolTCP), in, others, "::/80")
			begins := func(port uint16) result { return w.send(fromOutside(), tcp(w.stranger(), port, w.host, 80, syn)) }
			if !w.v6 {
				begins(5000).dropped("source to-container")
				w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, syn)).toBackend(tcp(w.outside, 5000, w.backend, 8080, syn))
				restrict(w, s, "0.0.0.0/0", "::/0")
				begins(5001).toBackend(tcp(w.stranger(), 5001, w.backend, 8080, syn))
				restrict(w, s, "::/0")
				begins(5002).dropped("source to-container")
				testDP.sources = sources{} // a new process
				restrict(w, s, "::/0", "203.0.113.0/24")
				begins(5002).toBackend(tcp(w.stranger(), 5002, w.backend, 8080, syn))
				restrict(w, s, "::/80")
				begins(5003).dropped("source to-container")
				restrict(w, s)
				require.Empty(w, entries(w, "sources"))
				return
			}
			begins(5000).dropped("source to-container")
			restrict(w, s, "::/0")
			begins(5001).toBackend(tcp(w.stranger(), 5001, w.backend, 8080, syn))
		}},
		{"nobody behind another uplink asks in the name of who is in a prefix", func(w *world) {
			w.leaves(true)
			restrict(w, w.publish(w.host, 53, ProtocolUDP), lan(w))
			w.publish(w.host, 54, ProtocolUDP)
			findSlaves(w.TB)
			other := fromParent()
			w.send(other, udp(w.outside, 5000, w.host, 53, "q")).dropped("spoofed to-container")
			w.send(other, udp(w.outside, 5001, w.host, 54, "q")).toBackend(udp(w.outside, 5001, w.backend, 8080, "q"))
			w.send(fromOutside(), udp(w.outside, 5000, w.host, 53, "q")).toBackend(udp(w.outside, 5000, w.backend, 8080, "q"))
		}},
		{"the sources of one service are not another's", func(w *world) {
			w.leaves(true)
			restrict(w, w.publish(w.host, 80, ProtocolTCP), lan(w))
			restrict(w, w.publish(w.host, 81, ProtocolTCP))
			w.publish(w.host, 82, ProtocolTCP)
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 81, syn)).dropped("source to-container")
			w.send(fromOutside(), tcp(w.stranger(), 5000, w.host, 82, syn)).toBackend(tcp(w.stranger(), 5000, w.backend, 8080, syn))
		}},
		{"a flow that has begun goes on when its source is taken away", func(w *world) {
			w.leaves(true)
			s := restrict(w, w.publish(w.host, 80, ProtocolTCP), lan(w))
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, syn)).toBackend(tcp(w.outside, 5000, w.backend, 8080, syn))
			restrict(w, s)
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, data)).toBackend(tcp(w.outside, 5000, w.backend, 8080, data))
			w.send(fromOutside(), tcp(w.outside, 5001, w.host, 80, syn)).dropped("source to-container")
		}},
		{"containers are judged by their own address, also the backend itself", func(w *world) {
			w.leaves(true)
			s := restrict(w, w.publish(w.host, 80, ProtocolTCP), lan(w))
			w.send(fromClient(), tcp(w.client, 5000, w.host, 80, syn)).dropped("source")
			w.send(fromBackend(), tcp(w.backend, 5000, w.host, 80, syn)).dropped("source")
			restrict(w, s, netip.PrefixFrom(w.client, w.client.BitLen()).String())
			w.send(fromClient(), tcp(w.client, 5000, w.host, 80, syn)).toBackend(tcp(w.client, 5000, w.backend, 8080, syn))
		}},
		{"who pretends to be a container, or the host, does not get in", func(w *world) {
			w.leaves(true)
			restrict(w, w.publish(w.host, 80, ProtocolTCP), map[bool]string{false: "10.0.0.0/8", true: "fd00::/8"}[w.v6])
			w.publish(w.host, 81, ProtocolTCP)
			for _, src := range []netip.Addr{w.client, w.backend, w.host} {
				w.send(fromOutside(), tcp(src, 5000, w.host, 80, syn)).dropped("spoofed to-container")
				w.send(fromOutside(), tcp(src, 5000, w.host, 81, syn)).dropped("spoofed to-container")
			}
		}},
		{"a port at a container's own address may be restricted, too", func(w *world) {
			w.leaves(false)
			restrict(w, w.routed(8080, ProtocolTCP), lan(w))
			w.send(fromOutside(), tcp(w.outside, 5000, w.backend, 8080, syn)).toBackend(tcp(w.outside, 5000, w.backend, 8080, syn))
			w.send(fromOutside(), tcp(w.stranger(), 5000, w.backend, 8080, syn)).dropped("source to-container")
		}},
	})
}

// stranger is outside, and in no prefix that a test lets in.
func (w *world) stranger() netip.Addr {
	if w.v6 {
		return netip.MustParseAddr("2001:4860::1")
	}
	return netip.MustParseAddr("203.0.113.9")
}

// routed publishes a port of the backend at its own address.
func (w *world) routed(port uint16, proto Protocol) Service {
	w.Helper()
	w.lastService++
	s := Service{
		Frontend: Frontend{Addr: w.backend, Port: port, Protocol: proto}, ID: w.lastService, Published: true,
		Slots: []uint32{w.backendAt(w.backend, port)},
	}
	require.NoError(w, testDP.PutService(s))
	return s
}
