// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// arp is an ARP packet over Ethernet and IPv4.
func arp(dst, src net.HardwareAddr, op uint16, smac net.HardwareAddr, sip netip.Addr, tmac net.HardwareAddr, tip netip.Addr) []byte {
	b := binary.BigEndian.AppendUint16(slices.Concat(dst, src), etherARP)
	b = append(b, 0, 1, 8, 0, 6, 4, byte(op>>8), byte(op))
	return slices.Concat(b, smac, sip.AsSlice(), tmac, tip.AsSlice())
}

func arpRequest(from, target netip.Addr) []byte {
	return arp(broadcastMAC, clientMAC, 1, clientMAC, from, make([]byte, 6), target)
}

func TestARP(t *testing.T) {
	zero := netip.IPv4Unspecified()
	answered := func(w *world, target netip.Addr) {
		w.sendRaw(fromClient(), arpRequest(w.client, target)).
			is(verdictRedirect, arp(clientMAC, clientHostMAC, 2, clientHostMAC, target, clientMAC, w.client))
	}
	run(t, false, []scenario{
		{"the gateway is answered for", func(w *world) { answered(w, w.gateway) }},
		{"an endpoint of the same network is answered for", func(w *world) { answered(w, w.backend) }},
		{"a VIP is answered for", func(w *world) { w.web(); answered(w, w.vip) }},
		{"an address of the pool is answered for, so that it can be refused", func(w *world) { answered(w, w.poolOnly) }},
		{"a padded request is answered", func(w *world) {
			r := w.sendRaw(fromClient(), append(arpRequest(w.client, w.gateway), make([]byte, 18)...))
			r.is(verdictRedirect, append(arp(clientMAC, clientHostMAC, 2, clientHostMAC, w.gateway, clientMAC, w.client), make([]byte, 18)...))
		}},
		{"a unicast request is answered", func(w *world) {
			r := w.sendRaw(fromClient(), arp(clientHostMAC, clientMAC, 1, clientMAC, w.client, clientHostMAC, w.gateway))
			r.is(verdictRedirect, arp(clientMAC, clientHostMAC, 2, clientHostMAC, w.gateway, clientMAC, w.client))
		}},
		{"an endpoint of another network is not answered for", func(w *world) {
			w.sendRaw(fromClient(), arpRequest(w.client, w.foreign)).ignored()
		}},
		{"a container's own address is not", func(w *world) { w.sendRaw(fromClient(), arpRequest(w.client, w.client)).ignored() }},
		{"a stranger is not", func(w *world) { w.sendRaw(fromClient(), arpRequest(w.client, w.outside)).ignored() }},
		{"no gateway means that 0.0.0.0 is nobody", func(w *world) {
			require.NoError(w, testDP.PutInterface(Interface{IfIndex: clientIf, Network: network1, Strict: true, MAC: clientHostMAC}))
			w.sendRaw(fromClient(), arpRequest(w.client, zero)).ignored()
			w.sendRaw(fromClient(), arpRequest(w.client, w.gateway)).ignored()
		}},
		{"a probe is not answered, even for an address that is taken", func(w *world) {
			w.sendRaw(fromClient(), arpRequest(zero, w.backend)).ignored()
		}},
		{"an announcement is not answered", func(w *world) {
			w.sendRaw(fromClient(), arpRequest(w.gateway, w.gateway)).ignored()
		}},
		{"a reply, wanted or forged, goes nowhere", func(w *world) {
			w.sendRaw(fromClient(), arp(clientHostMAC, clientMAC, 2, clientMAC, w.gateway, clientHostMAC, w.client)).ignored()
		}},
		{"a malformed request is counted", func(w *world) {
			good := arpRequest(w.client, w.gateway)
			for n := 14; n < len(good); n++ {
				w.sendRaw(fromClient(), good[:n]).dropped("malformed")
			}
			for at, value := range map[int]byte{15: 6, 16: 0x86, 18: 8, 19: 16} {
				bad := slices.Clone(good)
				bad[at] = value
				w.sendRaw(fromClient(), bad).dropped("malformed")
			}
		}},
		{"without an interface entry the stack answers", func(w *world) {
			require.NoError(w, testDP.DeleteInterface(clientIf))
			w.sendRaw(fromClient(), arpRequest(w.client, w.gateway)).untouched()
		}},
		{"ARP to a container passes", func(w *world) {
			w.sendRaw(toClient(0), arp(broadcastMAC, clientHostMAC, 1, clientHostMAC, w.gateway, make([]byte, 6), w.client)).untouched()
		}},
	})
}

// solicit is a neighbour solicitation with the sender's link-layer address.
func solicit(from, target netip.Addr, mac net.HardwareAddr) frame {
	t := target.As16()
	group := netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 12: 0xff, 13: t[13], 14: t[14], 15: t[15]})
	f := icmp(from, group, 135, 0, 0, slices.Concat(t[:], []byte{1, 1}, mac)).hops(255)
	return f.macs(net.HardwareAddr{0x33, 0x33, 0xff, t[13], t[14], t[15]}, mac)
}

// advertByOwn is the answer inside a sandbox, which comes from the device's own MAC.
func advertByOwn(w *world, target netip.Addr) []byte {
	return icmp(target, w.client, 136, 0, 0xe0000000, slices.Concat(target.AsSlice(), []byte{2, 1}, clientMAC)).
		hops(255).macs(clientMAC, clientMAC).bytes()
}

// advert is the answer of the client's host end.
func advert(w *world, target netip.Addr) []byte {
	return icmp(target, w.client, 136, 0, 0xe0000000, slices.Concat(target.AsSlice(), []byte{2, 1}, clientHostMAC)).
		hops(255).macs(clientMAC, clientHostMAC).bytes()
}

func TestNeighbourDiscovery(t *testing.T) {
	answered := func(w *world, target netip.Addr) {
		w.send(fromClient(), solicit(w.client, target, clientMAC)).is(verdictRedirect, advert(w, target))
	}
	run(t, true, []scenario{
		{"the gateway is answered for", func(w *world) { answered(w, w.gateway) }},
		{"an endpoint of the same network is answered for", func(w *world) { answered(w, w.backend) }},
		{"a VIP is answered for", func(w *world) { w.web(); answered(w, w.vip) }},
		{"a unicast solicitation without option is answered", func(w *world) {
			w.send(fromClient(), icmp(w.client, w.gateway, 135, 0, 0, w.gateway.AsSlice()).hops(255)).
				is(verdictRedirect, advert(w, w.gateway))
		}},
		{"an endpoint of another network is not answered for", func(w *world) {
			w.send(fromClient(), solicit(w.client, w.foreign, clientMAC)).ignored()
		}},
		{"a container's own address is not", func(w *world) { w.send(fromClient(), solicit(w.client, w.client, clientMAC)).ignored() }},
		{"duplicate address detection is not answered", func(w *world) {
			for _, target := range []netip.Addr{w.client, w.backend, w.gateway} {
				w.send(fromClient(), solicit(netip.IPv6Unspecified(), target, clientMAC)).ignored()
			}
		}},
		{"an unsolicited advertisement goes nowhere", func(w *world) {
			f := icmp(w.gateway, netip.MustParseAddr("ff02::1"), 136, 0, 0x20000000, w.gateway.AsSlice()).hops(255)
			w.send(fromClient(), f).dropped("multicast")
			f.daddr = w.backend
			w.send(fromClient(), f).dropped("spoofed")
		}},
		{"a solicitation that is cut is counted", func(w *world) {
			f := icmp(w.client, w.gateway, 135, 0, 0, w.gateway.AsSlice()[:12]).hops(255)
			w.send(fromClient(), f).dropped("malformed")
		}},
		{"one that came over a router is not answered", func(w *world) {
			w.send(fromClient(), solicit(w.client, w.gateway, clientMAC).hops(64)).dropped("malformed")
		}},
		{"one that is fragmented is not answered", func(w *world) {
			f := solicit(w.client, w.gateway, clientMAC)
			f.hasFragment, f.fragment = true, 1
			w.send(fromClient(), f).dropped("malformed")
		}},
		{"without an interface entry the stack answers", func(w *world) {
			require.NoError(w, testDP.DeleteInterface(clientIf))
			w.send(fromClient(), solicit(w.client, w.gateway, clientMAC)).untouched()
		}},
		{"ND to a container passes", func(w *world) {
			w.send(toClient(0), solicit(w.gateway, w.client, clientHostMAC)).untouched()
		}},
	})
	run(t, false, []scenario{
		{"protocol 58 in IPv4 is no neighbour discovery", func(w *world) {
			w.send(fromClient(), ip(w.client, w.gateway, protoICMP6, raw("\x87\x00\x00\x00\x00\x00\x00\x00\xfd\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"))).untouched()
		}},
	})
}
