// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestIsolation(t *testing.T) {
	both(t, []scenario{
		{"an endpoint of the same network is reached directly", func(w *world) {
			in := tcp(w.client, 5000, w.backend, 22, syn)
			w.send(fromClient(), in).toBackend(in)
			in = echo(w.client, w.backend2, false, "ping")
			w.send(fromClient(), in).toBackend2(in)
		}},
		{"an endpoint of another network is not", func(w *world) {
			for _, in := range []frame{
				tcp(w.client, 5000, w.foreign, 22, syn), udp(w.client, 5000, w.foreign, 53, "x"), echo(w.client, w.foreign, false, "ping"),
			} {
				w.send(fromClient(), in).dropped("isolated")
			}
		}},
		{"the gateway is reached", func(w *world) {
			w.send(fromClient(), echo(w.client, w.gateway, false, "ping")).untouched()
			w.send(fromClient(), tcp(w.client, 5000, w.gateway, 22, syn)).untouched()
		}},
		{"what is neither endpoint nor VIP nor gateway is refused", func(w *world) {
			for _, in := range []frame{
				tcp(w.client, 5000, w.outside, 80, syn), udp(w.client, 5000, w.outside, 80, "x"), echo(w.client, w.outside, false, "ping"),
			} {
				w.send(fromClient(), in).answered(unreachable(w.outside, w.client, false, in.quote()), "no-route")
			}
		}},
		{"a source that is not the endpoint's is dropped without a trace", func(w *world) {
			w.web()
			zero := netip.IPv4Unspecified()
			if w.v6 {
				zero = netip.IPv6Unspecified()
			}
			for _, src := range []netip.Addr{w.backend, w.foreign, w.vip, w.gateway, w.outside, zero} {
				w.send(fromClient(), tcp(src, 5000, w.vip, 80, syn)).dropped("spoofed")
				w.send(fromClient(), echo(src, w.backend, false, "ping")).dropped("spoofed")
				require.Nil(w, w.ct(tcp(src, 5000, w.vip, 80, syn), dirRequest))
			}
		}},
		{"multicast and broadcast end at the endpoint", func(w *world) {
			groups := []string{"224.0.0.1", "239.255.255.250", "255.255.255.255"}
			if w.v6 {
				groups = []string{"ff02::1", "ff02::2", "ff05::c"}
			}
			for _, g := range groups {
				w.send(fromClient(), udp(w.client, 5000, netip.MustParseAddr(g), 1900, "x")).dropped("multicast")
			}
		}},
		{"a container tells nobody where routers and neighbours are", func(w *world) {
			if !w.v6 {
				w.send(fromClient(), icmp(w.client, w.backend, 5, 1, 0, make([]byte, 28))).dropped("spoofed")
				return
			}
			for _, typ := range []uint8{134, 136, 137} {
				w.send(fromClient(), icmp(w.client, w.backend, typ, 0, 0, make([]byte, 40)).hops(255)).dropped("spoofed")
			}
			w.send(fromClient(), icmp(w.client, w.gateway, 136, 0, 0, make([]byte, 40)).hops(255)).untouched()
		}},
		{"a container cannot advertise itself as a router", func(w *world) {
			if !w.v6 {
				return
			}
			all := netip.MustParseAddr("ff02::1")
			w.send(fromClient(), icmp(w.client, all, 134, 0, 0x40000708, make([]byte, 8)).hops(255)).dropped("multicast")
			w.send(fromClient(), icmp(netip.MustParseAddr("fe80::1"), w.backend, 134, 0, 0x40000708, make([]byte, 8)).hops(255)).dropped("spoofed")
			w.send(fromClient(), icmp(netip.MustParseAddr("fe80::1"), w.backend, 137, 0, 0, make([]byte, 32)).hops(255)).dropped("spoofed")
		}},
		{"the TTL and link-layer addresses of a direct packet do not matter", func(w *world) {
			in := udp(w.client, 5000, w.backend, 22, "x").hops(1).macs(broadcastMAC, mac(0x77))
			w.send(fromClient(), in).toBackend(in)
		}},
	})
}

func TestGatewayModeIsolated(t *testing.T) {
	isolate := func(w *world, four, six bool) {
		gw4, gw6 := addressesOf(false).gateway, addressesOf(true).gateway
		require.NoError(w, testDP.PutInterface(Interface{
			IfIndex: clientIf, Network: network1, Strict: true, Gateway4: gw4, Gateway6: gw6, MAC: clientHostMAC, Isolated4: four, Isolated6: six,
		}))
		require.NoError(w, testDP.PutEndpoint(Endpoint{Addr: w.host, Host: true}))
	}
	both(t, []scenario{
		{"the host is not reached, neither by the gateway's address nor by its own", func(w *world) {
			isolate(w, true, true)
			w.send(fromClient(), echo(w.client, w.gateway, false, "ping")).dropped("isolated")
			w.send(fromClient(), tcp(w.client, 5000, w.gateway, 22, syn)).dropped("isolated")
			w.send(fromClient(), udp(w.client, 5000, w.host, 53, "x")).dropped("isolated")
		}},
		{"the host does not reach it", func(w *world) {
			isolate(w, true, true)
			w.send(toClient(0), tcp(w.gateway, 5000, w.client, 22, syn)).dropped("isolated to-container")
			w.send(toClient(0), echo(w.gateway, w.client, true, "pong")).dropped("isolated to-container")
		}},
		{"the own network and its services are reached", func(w *world) {
			isolate(w, true, true)
			w.web()
			in := tcp(w.client, 5000, w.backend, 22, syn)
			w.send(fromClient(), in).toBackend(in)
			w.send(fromClient(), w.request(syn)).toBackend(w.sent(syn))
			w.send(fromBackend(), w.reply(synAck)).toClient(w.received(synAck))
		}},
		{"it is a matter of one family", func(w *world) {
			isolate(w, w.v6, !w.v6)
			w.send(fromClient(), tcp(w.client, 5000, w.gateway, 22, syn)).untouched()
			w.send(toClient(0), tcp(w.gateway, 5000, w.client, 22, syn)).untouched()
		}},
	})
}

func TestOtherEtherTypes(t *testing.T) {
	frameOf := func(etherType uint16) []byte {
		b := binary.BigEndian.AppendUint16(slices.Concat(clientHostMAC, clientMAC), etherType)
		return append(b, make([]byte, 46)...)
	}
	for _, etherType := range []uint16{0x8100, 0x88a8, 0x8863, 0x88cc, 0x0806 + 1, 0x0026, 0xffff} {
		run(t, false, []scenario{
			{"a strict interface drops what is not IP", func(w *world) {
				reason := "no-route"
				if etherType == 0x8100 || etherType == 0x88a8 {
					reason = "vlan"
				}
				w.sendRaw(fromClient(), frameOf(etherType)).dropped(reason)
			}},
			{"without an interface entry it passes", func(w *world) {
				require.NoError(w, testDP.DeleteInterface(clientIf))
				w.sendRaw(fromClient(), frameOf(etherType)).untouched()
			}},
			{"inside a sandbox it passes", func(w *world) {
				w.sendRaw(insideClient(), frameOf(etherType)).untouched()
			}},
			{"to a container it passes", func(w *world) {
				w.sendRaw(toClient(0), frameOf(etherType)).untouched()
			}},
		})
	}
}

// insideClient is lxc_ingress on the egress of a device inside the sandbox: nothing came in on it.
func insideClient() hook { return hook{"lxc_ingress", at(clientIf, 0)} }

// intoClient is lxc_egress on the ingress of a device inside the sandbox.
func intoClient() hook { return hook{"lxc_egress", at(clientIf, clientIf)} }

func TestByHand(t *testing.T) {
	byHand := func(w *world) { // the article's set-up: endpoints of network 0 and no interface entry
		for _, index := range []int{clientIf, backendIf} {
			require.NoError(w, testDP.DeleteInterface(index))
		}
		for addr, index := range map[netip.Addr]int{w.client: clientIf, w.backend: backendIf} {
			m := clientMAC
			hm := clientHostMAC
			if index == backendIf {
				m, hm = backendMAC, backendHostMAC
			}
			require.NoError(w, testDP.PutEndpoint(Endpoint{Addr: addr, IfIndex: index, Redirect: true, MAC: m, HostMAC: hm}))
		}
	}
	both(t, []scenario{
		{"a host-scope service is translated", func(w *world) {
			byHand(w)
			w.putService(Service{Frontend: Frontend{Addr: w.vip, Port: 80}, ID: 9, Slots: []uint32{w.backendAt(w.backend, 8080)}})
			w.send(fromClient(), w.request(syn)).toBackend(w.sent(syn))
			w.send(fromBackend(), w.reply(synAck)).toClient(w.received(synAck))
		}},
		{"a network's service is not", func(w *world) {
			byHand(w)
			w.web()
			in := w.request(syn)
			w.send(fromClient(), in).answered(tcp(w.vip, 80, w.client, 5000, segment{flags: flagRST | flagACK, ack: 1001}), "not-member")
		}},
		{"everything else passes to the stack", func(w *world) {
			byHand(w)
			w.send(fromClient(), tcp(w.client, 5000, w.outside, 80, syn)).untouched()
			w.send(fromClient(), tcp(w.outside, 5000, w.outside, 80, syn)).untouched()
			w.send(toClient(99), tcp(w.outside, 80, w.client, 5000, synAck)).untouched()
			w.send(fromClient(), udp(w.client, 5353, netip.MustParseAddr(map[bool]string{false: "224.0.0.251", true: "ff02::fb"}[w.v6]), 5353, "x")).untouched()
		}},
		{"an endpoint of a network stays out of reach", func(w *world) {
			byHand(w)
			w.send(fromClient(), tcp(w.client, 5000, w.backend2, 80, syn)).dropped("isolated")
		}},
	})
}

func TestInsideSandbox(t *testing.T) {
	both(t, []scenario{
		{"a request goes on to the LAN with its backend's address and MAC", func(w *world) {
			w.web()
			toLAN := func(s segment) []byte { return w.sent(s).macs(backendMAC, clientMAC).bytes() }
			w.send(insideClient(), w.request(syn)).is(verdictPass, toLAN(syn))
			w.send(intoClient(), w.reply(synAck)).toStack(w.received(synAck))
			w.send(insideClient(), w.request(ack)).is(verdictPass, toLAN(ack))
		}},
		{"a request to a backend outside is resolved by the sandbox's routes", func(w *world) {
			w.service(w.vip, 80, ProtocolTCP, w.backendAt(w.outside, 8080))
			r := w.send(insideClient(), w.request(syn))
			r.is(verdictRedirect, tcp(w.client, 5000, w.outside, 8080, syn).macs(r.in[:6], r.in[6:12]).bytes())
		}},
		{"a member that calls its own VIP is turned back", func(w *world) {
			w.service(w.vip, 80, ProtocolTCP, w.backendAt(w.client, 8080))
			own := func(f frame) []byte { return f.macs(clientMAC, clientMAC).bytes() }
			w.send(insideClient(), w.request(syn)).is(verdictRedirect, own(tcp(w.vip, 5000, w.client, 8080, syn)))
			w.send(insideClient(), tcp(w.client, 8080, w.vip, 5000, synAck)).
				is(verdictRedirect, own(tcp(w.vip, 80, w.client, 5000, synAck)))
		}},
		{"a refusal goes back into the sandbox", func(w *world) {
			w.web()
			w.send(insideClient(), tcp(w.client, 5000, w.vip, 81, syn)).
				answered(tcp(w.vip, 81, w.client, 5000, segment{flags: flagRST | flagACK, ack: 1001}), "no-service")
			w.send(insideClient(), echo(w.client, w.vip, false, "ping")).answered(echo(w.vip, w.client, true, "ping"))
		}},
		{"what is no VIP passes", func(w *world) {
			w.send(insideClient(), tcp(w.client, 5000, w.outside, 80, syn)).untouched()
			w.send(insideClient(), tcp(w.client, 5000, w.backend, 80, syn)).untouched()
			w.send(intoClient(), tcp(w.outside, 80, w.client, 5000, synAck)).untouched()
		}},
		{"ARP and neighbour discovery are the device's own, but nobody else answers for VIPs", func(w *world) {
			w.web()
			if w.v6 {
				w.send(insideClient(), solicit(w.client, w.gateway, clientMAC)).untouched()
				w.send(insideClient(), solicit(w.client, w.vip, clientMAC)).is(verdictRedirect, advertByOwn(w, w.vip))
				return
			}
			w.sendRaw(insideClient(), arpRequest(w.client, w.gateway)).untouched()
			w.sendRaw(insideClient(), arpRequest(w.client, w.vip)).
				is(verdictRedirect, arp(clientMAC, clientMAC, 2, clientMAC, w.vip, clientMAC, w.client))
		}},
	})
}

func TestToContainer(t *testing.T) {
	both(t, []scenario{
		{"the host itself reaches a container", func(w *world) {
			w.send(toClient(0), tcp(w.gateway, 5000, w.client, 22, syn)).untouched()
		}},
		{"an endpoint of the same network does", func(w *world) {
			w.send(toClient(backendIf), tcp(w.backend, 5000, w.client, 22, syn)).untouched()
		}},
		{"another network's endpoint does not", func(w *world) {
			w.send(toClient(1005), tcp(w.foreign, 5000, w.client, 22, syn)).dropped("isolated to-container")
		}},
		{"a stranger does not", func(w *world) {
			w.send(toClient(99), tcp(w.outside, 5000, w.client, 22, syn)).dropped("isolated to-container")
		}},
		{"a stranger with the address of a neighbour does not", func(w *world) {
			w.send(toClient(99), tcp(w.backend, 5000, w.client, 22, syn)).dropped("isolated to-container")
		}},
		{"whom the host's stack has sent it to answers with the host's address, from a network that leads out", func(w *world) {
			require.NoError(w, testDP.PutEndpoint(Endpoint{Addr: w.host, Host: true}))
			answer := tcp(w.host, 8090, w.client, 5000, synAck)
			w.send(toClient(99), answer).dropped("isolated to-container")
			w.leaves(true)
			w.send(toClient(99), answer).untouched()
			w.send(toClient(99), tcp(w.gateway, 8090, w.client, 5000, synAck)).dropped("isolated to-container")
		}},
		{"and nothing begins with it, which is what the stack masquerades with", func(w *world) {
			w.leaves(true)
			w.send(toClient(99), tcp(w.host, 8090, w.client, 5000, syn)).dropped("isolated to-container")
			answer := udp(w.host, 53, w.client, 5000, "a")
			w.send(toClient(99), answer).dropped("isolated to-container")
			w.send(fromClient(), udp(w.client, 5000, w.host, 53, "q")).untouched()
			w.send(toClient(99), answer).untouched()
			w.send(toClient(99), udp(w.host, 53, w.client, 5001, "a")).dropped("isolated to-container")
		}},
		{"a container that is not guarded gets everything", func(w *world) {
			require.NoError(w, testDP.DeleteInterface(clientIf))
			w.send(toClient(99), tcp(w.outside, 5000, w.client, 22, syn)).untouched()
		}},
		{"a malformed packet is dropped", func(w *world) {
			f := tcp(w.gateway, 5000, w.client, 22, segment{offset: 4})
			w.send(toClient(0), f).dropped("malformed to-container")
		}},
		{"both ways of a service pass when its backend is delivered to by the stack", func(w *world) {
			for addr, index := range map[netip.Addr]int{w.client: clientIf, w.backend: backendIf} {
				require.NoError(w, testDP.PutEndpoint(Endpoint{Addr: addr, IfIndex: index, Network: network1}))
			}
			w.web()
			w.send(fromClient(), w.request(syn)).toStack(w.sent(syn))
			w.send(hook{"lxc_egress", at(backendIf, clientIf)}, w.sent(syn)).untouched()
			w.send(fromBackend(), w.reply(synAck)).toStack(w.received(synAck))
			w.send(toClient(backendIf), w.received(synAck)).untouched()
		}},
		{"a service for everybody reaches a backend of another network through the stack", func(w *world) {
			for addr, index := range map[netip.Addr]int{w.client: clientIf, w.backend: backendIf} {
				require.NoError(w, testDP.PutEndpoint(Endpoint{Addr: addr, IfIndex: index, Network: uint32(index)}))
				require.NoError(w, testDP.PutInterface(Interface{IfIndex: index, Network: uint32(index), Strict: true}))
			}
			w.putService(Service{Frontend: Frontend{Addr: w.vip, Port: 80}, ID: 9, Slots: []uint32{w.backendAt(w.backend, 8080)}})
			w.send(fromClient(), w.request(syn)).toStack(w.sent(syn))
			w.send(hook{"lxc_egress", at(backendIf, clientIf)}, w.sent(syn)).untouched()
			w.send(fromBackend(), w.reply(synAck)).toStack(w.received(synAck))
			w.send(toClient(backendIf), w.received(synAck)).untouched()
			w.send(toClient(backendIf), tcp(w.backend, 8081, w.client, 5000, syn)).dropped("isolated to-container")
		}},
	})
}
