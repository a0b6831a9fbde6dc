// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
)

// Devices of a network of slaves, whose host's slave is clientIf; those of the kernel must be some that exist.
var slaveIf, parentIf, otherIf int

func findSlaves(t testing.TB) {
	t.Helper()
	for name, index := range map[string]*int{"mst-client-p": &slaveIf, "mst-backend-p": &parentIf, "mst-uplink-p": &otherIf} {
		l, err := netlink.LinkByName(name)
		require.NoError(t, err)
		*index = l.Attrs().Index
	}
}

var hostSlaveMAC = mac(0x20)

// slaves makes the backend and backend2 slaves, beside which the host's slave is clientIf: on a private parent, or on
// a LAN whose parent leads out.
func (w *world) slaves(private bool) {
	w.Helper()
	findSlaves(w.TB)
	w.leaves(true)
	four, six := addressesOf(false), addressesOf(true)
	parent := parentIf
	if private {
		parent = 0
	}
	guard := Interface{IfIndex: clientIf, Network: network1, Strict: true, MAC: hostSlaveMAC, Via: clientIf}
	if private {
		guard.Private, guard.Egress, guard.Masq4, guard.Masq6 = true, true, true, true
		guard.Gateway4, guard.Gateway6 = four.gateway, six.gateway
	}
	require.NoError(w, testDP.PutInterface(guard))
	guard.IfIndex = parentIf
	require.NoError(w, testDP.PutInterface(guard))
	require.NoError(w, testDP.DeleteInterface(backendIf))
	for _, a := range []addresses{four, six} {
		require.NoError(w, testDP.DeleteEndpoint(a.client))
		require.NoError(w, testDP.PutEndpoint(Endpoint{Addr: a.gateway, Host: true}))
		require.NoError(w, testDP.PutEndpoint(Endpoint{
			Addr: a.backend, IfIndex: slaveIf, Network: network1, MAC: backendMAC, HostMAC: hostSlaveMAC, Via: clientIf, Parent: parent,
		}))
		require.NoError(w, testDP.PutEndpoint(Endpoint{
			Addr: a.backend2, IfIndex: slaveIf, Network: network1, MAC: backend2MAC, HostMAC: hostSlaveMAC, Via: clientIf, Parent: parent,
		}))
	}
}

// Where the programs of a network of slaves run.
func toHost() hook     { return hook{"slave_ingress", at(clientIf, clientIf)} }
func handedUp() hook   { return hook{"slave_ingress", at(parentIf, parentIf)} }
func fromSlave() hook  { return hook{"lxc_ingress", at(slaveIf, 0)} }
func fromParent() hook { return hook{"host_ingress", at(parentIf, parentIf)} }

// vouched is the egress of the host's slave, for a packet that a program of ours sends there, or not.
func vouched(yes bool) hook {
	h := hook{"lxc_egress", at(clientIf, uplinkIf)}
	if yes {
		h.ctx.Cb[0] = 0x6d737402
	}
	return h
}

// asSlave gives a frame the addresses of one from the backend to the host's slave.
func asSlave(f frame) frame { return f.macs(hostSlaveMAC, backendMAC) }

// toSlave says that out goes to the backend by the host's slave.
func (r result) toSlave(out frame) {
	r.w.Helper()
	r.is(verdictRedirect, out.macs(backendMAC, hostSlaveMAC).bytes())
}

// leftByUplink says that the packet left by the device that its client comes by, as it was.
func (r result) leftByUplink() { r.w.Helper(); r.is(verdictRedirect, r.in) }

func TestPublishedOnSlaves(t *testing.T) {
	both(t, []scenario{
		{"a stream from outside goes to the slave by the host's own, which lets in what was vouched for", func(w *world) {
			w.slaves(true)
			w.publish(w.host, 80, ProtocolTCP)
			in := tcp(w.outside, 5000, w.backend, 8080, syn)
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, syn)).toSlave(in)
			w.send(vouched(true), in).untouched()
			w.send(vouched(false), tcp(w.outside, 5000, w.backend, 22, syn)).dropped("isolated to-container")
		}},
		{"another network's container is for the host to judge on a private parent, and not reached on a LAN's", func(w *world) {
			in := tcp(w.backend, 5000, w.foreign, 80, syn)
			w.slaves(true)
			w.send(fromSlave(), in).untouched()
			w.send(toHost(), asSlave(in)).dropped("isolated")
			w.slaves(false)
			w.send(fromSlave(), in).dropped("isolated")
		}},
		{"on a parent that the client comes by, the answer leaves directly", func(w *world) {
			w.slaves(false)
			w.publish(w.host, 80, ProtocolTCP)
			w.send(fromParent(), tcp(w.outside, 5000, w.host, 80, syn)).toSlave(tcp(w.outside, 5000, w.backend, 8080, syn))
			router := mac(0x99)
			w.send(fromSlave(), tcp(w.backend, 8080, w.outside, 5000, synAck).macs(router, backendMAC)).
				toStack(tcp(w.host, 80, w.outside, 5000, synAck))
		}},
		{"else it goes to the host's slave, and out by the device that the client comes by", func(w *world) {
			w.slaves(false)
			w.publish(w.host, 80, ProtocolTCP)
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, syn)).toSlave(tcp(w.outside, 5000, w.backend, 8080, syn))
			router := mac(0x99)
			out := asSlave(tcp(w.host, 80, w.outside, 5000, synAck))
			w.send(fromSlave(), tcp(w.backend, 8080, w.outside, 5000, synAck).macs(router, backendMAC)).is(verdictPass, out.bytes())
			w.send(toHost(), out).leftByUplink()
		}},
		{"a client that comes by another device from now on is answered there", func(w *world) {
			w.slaves(false)
			w.publish(w.host, 53, ProtocolUDP)
			answer := udp(w.backend, 8080, w.outside, 5000, "a").macs(mac(0x99), backendMAC)
			w.send(fromOutside(), udp(w.outside, 5000, w.host, 53, "q")).toSlave(udp(w.outside, 5000, w.backend, 8080, "q"))
			w.send(fromSlave(), answer).is(verdictPass, asSlave(udp(w.host, 53, w.outside, 5000, "a")).bytes())
			w.send(fromParent(), udp(w.outside, 5000, w.host, 53, "q")).toSlave(udp(w.outside, 5000, w.backend, 8080, "q"))
			w.send(fromSlave(), answer).toStack(udp(w.host, 53, w.outside, 5000, "a"))
		}},
		{"what ipvlan hands to a parent that leads out is sent out, too, and nobody else's", func(w *world) {
			w.slaves(false)
			w.publish(w.host, 80, ProtocolTCP)
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, syn)).toSlave(tcp(w.outside, 5000, w.backend, 8080, syn))
			answer := tcp(w.host, 80, w.outside, 5000, synAck)
			w.send(fromParent(), answer.macs(backendMAC, backendMAC)).leftByUplink()
			w.send(fromParent(), answer.macs(backendMAC, mac(0x99))).untouched()
			w.send(fromParent(), tcp(w.host, 81, w.outside, 5000, synAck).macs(backendMAC, backendMAC)).untouched()
			w.send(hook{"host_ingress", at(otherIf, otherIf)}, answer.macs(backendMAC, backendMAC)).untouched()
		}},
		{"fragments of an answer follow their head, in the sandbox and on the host", func(w *world) {
			w.slaves(true)
			w.publish(w.host, 53, ProtocolUDP)
			w.send(fromOutside(), udp(w.outside, 5000, w.host, 53, "q")).toSlave(udp(w.outside, 5000, w.backend, 8080, "q"))
			data := string(make([]byte, 64))
			first, later := udp(w.backend, 8080, w.outside, 5000, data).macs(mac(0x99), backendMAC).fragments(32)
			firstOut, laterOut := asSlave(udp(w.host, 53, w.outside, 5000, data)).fragments(32)
			w.send(fromSlave(), first).is(verdictPass, firstOut.bytes())
			w.send(fromSlave(), later).is(verdictPass, laterOut.bytes())
			w.send(toHost(), firstOut).leftByUplink()
			w.send(toHost(), laterOut).leftByUplink()
		}},
		{"an answer that is too large for the device that its client comes by is told of, as the slave sent it", func(w *world) {
			w.slaves(false)
			w.publish(w.host, 53, ProtocolUDP)
			w.send(fromOutside(), udp(w.outside, 5000, w.host, 53, "q")).toSlave(udp(w.outside, 5000, w.backend, 8080, "q"))
			w.mtu(1400)
			data := string(make([]byte, 1420))
			sent, known := asSlave(udp(w.backend, 8080, w.outside, 5000, data)), udp(w.host, 53, w.outside, 5000, data)
			told := w.tooBig(w.outside, w.backend, 1400, sent.quote())
			w.send(toHost(), asSlave(known)).answered(told, "too-big")
			// what ipvlan hands over is the slave's to learn of by the host's slave, too
			w.send(fromParent(), known.macs(backendMAC, backendMAC)).answered(told, "too-big")
			w.send(vouched(true), told).untouched()
			w.send(hook{"lxc_egress", at(slaveIf, slaveIf)}, told.macs(backendMAC, hostSlaveMAC)).untouched()
			first, later := asSlave(udp(w.host, 53, w.outside, 5000, string(make([]byte, 2800)))).fragments(1200)
			w.send(toHost(), first).leftByUplink()
			w.send(toHost(), later).dropped("too-big")
			w.mtu(1500)
			w.send(toHost(), asSlave(known)).leftByUplink()
		}},
		{"a fragment of an answer whose head was not seen is nobody's", func(w *world) {
			w.slaves(true)
			_, later := asSlave(udp(w.host, 53, w.outside, 5000, string(make([]byte, 64)))).fragments(32)
			w.send(toHost(), later).dropped("spoofed")
		}},
		{"an error of the backend reaches the client as the host's", func(w *world) {
			w.slaves(true)
			w.publish(w.host, 80, ProtocolTCP)
			sent, known := tcp(w.outside, 5000, w.backend, 8080, syn), tcp(w.outside, 5000, w.host, 80, syn)
			w.send(fromOutside(), known).toSlave(sent)
			out := asSlave(unreachable(w.host, w.outside, true, known.quote()))
			w.send(fromSlave(), unreachable(w.backend, w.outside, true, sent.quote()).macs(mac(0x99), backendMAC)).is(verdictPass, out.bytes())
			w.send(toHost(), out).leftByUplink()
		}},
		{"one that ipvlan has handed up untranslated comes to the stack by the host's slave, as the host's", func(w *world) {
			w.slaves(true)
			w.publish(w.host, 80, ProtocolTCP)
			sent, known := tcp(w.outside, 5000, w.backend, 8080, syn), tcp(w.outside, 5000, w.host, 80, syn)
			w.send(fromOutside(), known).toSlave(sent)
			handed := func(f frame) frame { return f.macs(backendMAC, backendMAC) }
			w.send(handedUp(), handed(unreachable(w.backend, w.outside, true, sent.quote()))).
				is(verdictRedirect, handed(unreachable(w.host, w.outside, true, known.quote())).bytes())
		}},
		{"an error about an answer reaches the slave", func(w *world) {
			w.slaves(true)
			w.publish(w.host, 80, ProtocolTCP)
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, syn)).toSlave(tcp(w.outside, 5000, w.backend, 8080, syn))
			sent, got := tcp(w.host, 80, w.outside, 5000, synAck), tcp(w.backend, 8080, w.outside, 5000, synAck)
			w.send(fromOutside(), unreachable(w.router, w.host, false, sent.quote())).toSlave(unreachable(w.router, w.backend, false, got.quote()))
		}},
		{"a container reaches a published port of its own network by the host, and is answered directly", func(w *world) {
			for _, private := range []bool{true, false} {
				w.slaves(private)
				w.publish(w.host, 80, ProtocolTCP)
				w.send(toHost(), tcp(w.backend2, 5000, w.host, 80, syn).macs(hostSlaveMAC, backend2MAC)).toSlave(tcp(w.backend2, 5000, w.backend, 8080, syn))
				answer := tcp(w.backend, 8080, w.backend2, 5000, synAck).macs(backend2MAC, backendMAC)
				w.send(fromSlave(), answer).toStack(tcp(w.host, 80, w.backend2, 5000, synAck))
			}
		}},
		{"and is told where there is no backend", func(w *world) {
			w.slaves(false)
			w.withoutBackend(w.publish(w.host, 80, ProtocolTCP))
			w.send(toHost(), asSlave(tcp(w.backend, 5000, w.host, 80, syn))).
				answered(tcp(w.host, 80, w.backend, 5000, segment{flags: flagRST | flagACK, ack: 1001}), "no-backend")
		}},
		{"and its own port", func(w *world) {
			w.slaves(true)
			w.publish(w.host, 80, ProtocolTCP)
			r := w.send(toHost(), asSlave(tcp(w.backend, 5000, w.host, 80, syn)))
			p := r.sourcePort()
			r.toSlave(tcp(w.host, p, w.backend, 8080, syn))
			w.send(fromSlave(), asSlave(tcp(w.backend, 8080, w.host, p, synAck))).
				is(verdictRedirect, tcp(w.host, 80, w.backend, 5000, synAck).macs(backendMAC, backendMAC).bytes())
		}},
		{"at its own address, where it is open, and is answered as it is", func(w *world) {
			w.slaves(true)
			require.NoError(w, testDP.PutEndpoint(Endpoint{
				Addr: w.backend, IfIndex: slaveIf, Network: network1, MAC: backendMAC, HostMAC: hostSlaveMAC, Via: clientIf, Open: true,
			}))
			w.send(fromOutside(), tcp(w.outside, 5000, w.backend, 22, syn)).toSlave(tcp(w.outside, 5000, w.backend, 22, syn))
			out := asSlave(tcp(w.backend, 22, w.outside, 5000, synAck))
			w.send(fromSlave(), out).is(verdictPass, out.bytes())
			w.send(toHost(), out).leftByUplink()
			require.Empty(w, entries(w.TB, "snat"))
		}},
		{"nobody outside has the address of a slave of a private parent, but a LAN's may come from there", func(w *world) {
			w.slaves(true)
			w.publish(w.host, 80, ProtocolTCP)
			w.send(fromOutside(), tcp(w.backend2, 5000, w.host, 80, syn)).dropped("spoofed to-container")
			w.slaves(false)
			w.send(fromOutside(), tcp(w.backend2, 5000, w.host, 80, syn)).toSlave(tcp(w.backend2, 5000, w.backend, 8080, syn))
		}},
		{"a container of another network reaches it, and is answered through the host", func(w *world) {
			w.slaves(true)
			w.publish(w.host, 80, ProtocolTCP)
			w.pair(w.foreign, network2)
			request := tcp(w.foreign, 5000, w.backend, 8080, syn)
			w.enters(tcp(w.foreign, 5000, w.host, 80, syn), request)
			out := asSlave(tcp(w.host, 80, w.foreign, 5000, synAck))
			w.send(fromSlave(), tcp(w.backend, 8080, w.foreign, 5000, synAck).macs(mac(0x99), backendMAC)).is(verdictPass, out.bytes())
			w.send(toHost(), out).is(verdictRedirect, out.macs(mac(5), mac(0x15)).bytes())
		}},
		{"a slave reaches a port of a pair's, and is answered by the host's slave", func(w *world) {
			w.slaves(true)
			w.pair(w.foreign, network2)
			w.lastService++
			require.NoError(w, testDP.PutService(Service{
				Frontend: Frontend{Addr: w.host, Port: 80, Protocol: ProtocolTCP}, ID: w.lastService, Published: true,
				Slots: []uint32{w.backendAt(w.foreign, 8080)},
			}))
			w.send(toHost(), asSlave(tcp(w.backend, 5000, w.host, 80, syn))).
				is(verdictRedirect, tcp(w.backend, 5000, w.foreign, 8080, syn).macs(mac(5), mac(0x15)).bytes())
			w.send(from(backendIf), tcp(w.foreign, 8080, w.backend, 5000, synAck)).toSlave(tcp(w.host, 80, w.backend, 5000, synAck))
		}},
	})
}

// pair makes addr an endpoint of another network, on the backend's pair.
func (w *world) pair(addr netip.Addr, network uint32) {
	w.Helper()
	require.NoError(w, testDP.PutEndpoint(Endpoint{Addr: addr, IfIndex: backendIf, Network: network, Redirect: true, MAC: mac(5), HostMAC: mac(0x15)}))
	require.NoError(w, testDP.PutInterface(Interface{IfIndex: backendIf, Network: network, Strict: true, Egress: true, MAC: mac(0x15)}))
}

// enters makes a flow from a client here, as a program that has no more to do with slaves would.
func (w *world) enters(client, sent frame) {
	w.Helper()
	request, answer := w.tuple(client, dirRequest), w.tuple(sent, dirReply)
	back := mstTuple{Saddr: answer.Daddr, Daddr: answer.Saddr, Sport: answer.Dport, Dport: answer.Sport, Proto: answer.Proto, Dir: dirReply}
	now, err := monotonic()
	require.NoError(w, err)
	require.NoError(w, testDP.maps["ct"].Put(&request, &mstCt{Saddr: answer.Saddr, Daddr: answer.Daddr, Sport: answer.Sport, Dport: answer.Dport, Seen: now}))
	require.NoError(w, testDP.maps["ct"].Put(&back, &mstCt{Saddr: request.Daddr, Daddr: request.Saddr, Sport: request.Dport, Dport: request.Sport, Seen: now}))
}

func TestEgressOfSlaves(t *testing.T) {
	both(t, []scenario{
		{"what leaves a private parent is masqueraded, and its answers come back by the host's slave", func(w *world) {
			w.slaves(true)
			for _, place := range []hook{toHost(), handedUp()} {
				p := w.send(place, asSlave(tcp(w.backend, 5000, w.outside, 443, syn))).leftAs(func(p uint16) frame { return tcp(w.host, p, w.outside, 443, syn) })
				w.send(fromOutside(), tcp(w.outside, 443, w.host, p, synAck)).toSlave(tcp(w.outside, 443, w.backend, 5000, synAck))
			}
		}},
		{"in fragments, too", func(w *world) {
			w.slaves(true)
			id := w.send(toHost(), asSlave(echoOf(w.backend, w.outside, 77, false))).leftAs(func(id uint16) frame { return echoOf(w.host, w.outside, id, false) })
			in, out := echoOf(w.backend, w.outside, 77, false), echoOf(w.host, w.outside, id, false)
			first, later := asSlave(in).fragments(8)
			firstOut, laterOut := asSlave(out.hops(63)).fragments(8)
			w.send(toHost(), first).is(verdictRedirect, firstOut.bytes())
			// the slave's own program is not who translated the head
			w.send(fromSlave(), later).untouched()
			w.send(toHost(), later).is(verdictRedirect, laterOut.bytes())
			first, later = echoOf(w.outside, w.host, id, true).fragments(8)
			firstOut, laterOut = echoOf(w.outside, w.backend, 77, true).fragments(8)
			w.send(fromOutside(), first).toSlave(firstOut)
			w.send(fromOutside(), later).toSlave(laterOut)
		}},
		{"one that begins too many flows is held back, alone", func(w *world) {
			w.slaves(true)
			four, six := addressesOf(false), addressesOf(true)
			for _, a := range []addresses{four, six} {
				require.NoError(w, testDP.PutEndpoint(Endpoint{
					Addr: a.backend2, IfIndex: slaveIf + 1000, Network: network1, MAC: backend2MAC, HostMAC: hostSlaveMAC, Via: clientIf,
				}))
			}
			require.NoError(w, testDP.maps["quotas"].Put(uint32(slaveIf), uint32(16384)))
			w.send(toHost(), asSlave(udp(w.backend, 5000, w.outside, 53, "q"))).dropped("snat-quota")
			w.send(toHost(), udp(w.backend2, 5000, w.outside, 53, "q").macs(hostSlaveMAC, backend2MAC)).
				leftAs(func(p uint16) frame { return udp(w.host, p, w.outside, 53, "q") })
			var n uint32
			require.NoError(w, testDP.maps["quotas"].Lookup(uint32(slaveIf+1000), &n))
			require.Equal(w, uint32(1), n)
		}},
		{"an error about what left reaches the slave that sent it", func(w *world) {
			w.slaves(true)
			p := w.send(toHost(), asSlave(tcp(w.backend, 5000, w.outside, 443, syn))).leftAs(func(p uint16) frame { return tcp(w.host, p, w.outside, 443, syn) })
			sent, got := tcp(w.host, p, w.outside, 443, syn).hops(60), tcp(w.backend, 5000, w.outside, 443, syn).hops(60)
			w.send(fromOutside(), unreachable(w.router, w.host, true, sent.quote())).toSlave(unreachable(w.router, w.backend, true, got.quote()))
		}},
		{"nor does a LAN's container get past who judges what is for the host", func(w *world) {
			w.slaves(false)
			for _, f := range evasions(w.backend2, w.host) {
				w.send(toHost(), f.macs(hostSlaveMAC, backend2MAC)).dropped("malformed")
			}
			for _, f := range evasions(w.backend2, w.router) {
				w.send(toHost(), f.macs(hostSlaveMAC, backend2MAC)).untouched()
			}
		}},
		{"the host's loopback is not reached", func(w *world) {
			w.slaves(false)
			w.publish(w.loopback, 80, ProtocolTCP)
			w.send(toHost(), asSlave(tcp(w.backend, 5000, w.loopback, 80, syn))).dropped("off-host")
			w.send(toHost(), asSlave(udp(w.loopback, 5000, w.host, 53, "q"))).dropped("off-host")
			w.slaves(true)
			in := asSlave(udp(w.backend, 5000, w.loopback, 53, "q"))
			w.send(toHost(), in).answered(unreachable(w.loopback, w.backend, false, in.quote()), "no-route")
			w.send(toHost(), asSlave(udp(w.loopback, 5000, w.host, 53, "q"))).dropped("spoofed")
		}},
		{"on a LAN the host leads nobody out", func(w *world) {
			w.slaves(false)
			w.send(toHost(), asSlave(tcp(w.backend, 5000, w.outside, 443, syn))).untouched()
		}},
		{"who is nobody of the network is stopped on a private parent, and the host's own business on a LAN", func(w *world) {
			for _, src := range []netip.Addr{w.outside, w.foreign, w.host} {
				f := asSlave(tcp(src, 5000, w.outside, 443, syn))
				w.slaves(true)
				w.send(toHost(), f).dropped("spoofed")
				w.slaves(false)
				w.send(toHost(), f).untouched()
			}
		}},
		{"in the name of somebody who is not of its network a container reaches a neighbour past its own program alone", func(w *world) {
			for _, private := range []bool{true, false} {
				w.slaves(private)
				for _, src := range []netip.Addr{w.outside, w.foreign, w.host, w.vip} {
					f := udp(src, 5000, w.backend2, 53, "q").macs(backend2MAC, backendMAC)
					w.send(fromSlave(), f).dropped("isolated")
					w.send(hook{"lxc_egress", at(slaveIf, slaveIf)}, f).untouched()
				}
				mate := udp(w.backend, 5000, w.backend2, 53, "q").macs(backend2MAC, mac(0x77))
				w.send(fromSlave(), mate).untouched()
			}
		}},
		{"and by the host on a LAN alone, whose stack has it as from any host there", func(w *world) {
			for _, src := range []netip.Addr{w.outside, w.foreign, w.host, w.vip} {
				f := asSlave(udp(src, 5000, w.backend2, 53, "q"))
				w.slaves(true)
				w.send(toHost(), f).dropped("spoofed")
				w.slaves(false)
				w.send(toHost(), f).untouched()
			}
		}},
		{"nobody answers for the backend of another network", func(w *world) {
			w.slaves(true)
			require.NoError(w, testDP.PutEndpoint(Endpoint{Addr: w.foreign, IfIndex: 2009, Network: network2, MAC: mac(5), HostMAC: mac(6), Via: 2010}))
			w.enters(tcp(w.outside, 5000, w.host, 80, syn), tcp(w.outside, 5000, w.foreign, 8080, syn))
			w.send(toHost(), asSlave(tcp(w.host, 80, w.outside, 5000, synAck))).dropped("spoofed")
		}},
		{"another network is out of reach", func(w *world) {
			w.slaves(true)
			w.send(toHost(), asSlave(tcp(w.backend, 5000, w.foreign, 80, syn))).dropped("isolated")
		}},
		{"the gateway and the host are the stack's", func(w *world) {
			w.slaves(true)
			w.send(toHost(), asSlave(tcp(w.backend, 5000, w.gateway, 22, syn))).untouched()
			w.send(toHost(), asSlave(tcp(w.backend, 5000, w.host, 22, syn))).untouched()
		}},
		{"what ipvlan handed to the parent instead comes to the stack by the host's slave", func(w *world) {
			w.slaves(true)
			r := w.send(handedUp(), tcp(w.backend, 5000, w.host, 22, syn).macs(backendMAC, backendMAC))
			r.is(verdictRedirect, r.in)
		}},
		{"an internal network leads nowhere, but to its gateway", func(w *world) {
			w.slaves(true)
			four, six := addressesOf(false), addressesOf(true)
			require.NoError(w, testDP.PutInterface(Interface{
				IfIndex: clientIf, Network: network1, Strict: true, MAC: hostSlaveMAC, Via: clientIf, Private: true,
				Gateway4: four.gateway, Gateway6: six.gateway,
			}))
			other := addressesOf(!w.v6)
			w.publish(everywhere(&world{addresses: other}), 80, ProtocolTCP)
			w.send(toHost(), asSlave(tcp(w.backend, 5000, w.gateway, 80, syn))).dropped("isolated")
			if w.v6 {
				near, host := netip.MustParseAddr("fe80::2"), netip.MustParseAddr("fe80::1")
				w.send(toHost(), asSlave(tcp(near, 5000, host, 80, syn))).dropped("isolated")
				w.send(toHost(), asSlave(tcp(near, 5000, host, 22, syn))).untouched()
				w.send(toHost(), asSlave(tcp(near, 5000, w.gateway, 22, syn))).untouched()
				w.send(toHost(), asSlave(tcp(near, 5000, w.host, 22, syn))).dropped("isolated")
			}
			w.send(toHost(), asSlave(tcp(w.backend, 5000, w.gateway, 22, syn))).untouched()
			w.send(toHost(), asSlave(tcp(w.backend, 5000, w.host, 22, syn))).dropped("isolated")
			in := asSlave(udp(w.backend, 5000, w.outside, 53, "q"))
			w.send(toHost(), in).answered(unreachable(w.outside, w.backend, false, in.quote()), "no-route")
		}},
		{"a packet that has no hop left is answered by the gateway", func(w *world) {
			w.slaves(true)
			r := w.send(toHost(), asSlave(udp(w.backend, 5000, w.outside, 53, "q").hops(1)))
			require.Equal(w, map[string]uint64{"ttl from-container": 1}, r.counted)
			require.Equal(w, uint32(verdictRedirect), r.verdict)
			require.Equal(w, slices.Concat(backendMAC, hostSlaveMAC), net.HardwareAddr(r.out[:12]))
		}},
		{"an unassigned address of the service pools is told to be nobody's", func(w *world) {
			w.slaves(true)
			in := asSlave(udp(w.backend, 5000, w.poolOnly, 53, "q"))
			w.send(toHost(), in).answered(unreachable(w.poolOnly, w.backend, false, in.quote()), "no-service")
		}},
	})
}

func TestForOneInAFrameForMany(t *testing.T) {
	both(t, []scenario{
		{"nobody gets past the host's slave by it", func(w *world) {
			frames := []net.HardwareAddr{broadcastMAC, everyNodeMAC}
			for _, to := range frames {
				for _, private := range []bool{true, false} {
					w.slaves(private)
					for _, f := range []frame{
						udp(w.backend, 5000, w.host, 53, "q"), udp(w.foreign, 5000, w.host, 53, "q"),
						udp(w.backend, 5000, w.poolOnly, 53, "q"), udp(w.backend, 5000, w.loopback, 53, "q"),
					} {
						w.send(toHost(), f.macs(to, backendMAC)).dropped("multicast")
					}
					for _, f := range evasions(w.backend, w.host) {
						w.send(toHost(), f.macs(to, backendMAC)).dropped("multicast")
					}
				}
				w.slaves(true)
				w.send(toHost(), udp(w.backend, 5000, w.outside, 53, "q").macs(to, backendMAC)).dropped("multicast")
				w.slaves(false)
				w.send(toHost(), udp(w.backend, 5000, w.outside, 53, "q").macs(to, backendMAC)).untouched()
			}
		}},
		{"the last address of a subnet, which is its broadcast address in IPv4, is one as all others", func(w *world) {
			last := netip.MustParseAddr("10.1.0.255")
			if w.v6 {
				last = netip.MustParseAddr("fd00:1::ff")
			}
			in := udp(w.backend, 5000, last, 53, "q").macs(broadcastMAC, backendMAC)
			w.slaves(true)
			w.send(toHost(), in).dropped("multicast")
			w.send(fromSlave(), in).untouched() // for its neighbours
			w.slaves(false)
			w.send(toHost(), in).untouched()
		}},
		{"what is for many passes on a LAN, and on a private parent only what finds neighbours", func(w *world) {
			many := netip.MustParseAddr("224.0.0.251")
			if w.v6 {
				many = netip.MustParseAddr("ff02::fb")
			}
			for _, to := range []net.HardwareAddr{broadcastMAC, hostSlaveMAC} {
				for _, from := range []netip.Addr{w.backend, w.foreign, w.outside} {
					in := udp(from, 5353, many, 5353, "q").macs(to, backendMAC)
					w.slaves(false)
					w.send(toHost(), in).untouched()
					w.slaves(true)
					w.send(toHost(), in).dropped("multicast")
				}
				if w.v6 {
					w.send(toHost(), solicit(w.backend, w.gateway, backendMAC).macs(to, backendMAC)).untouched()
					w.send(toHost(), icmp(w.backend, many, 128, 0, 0, nil).macs(to, backendMAC)).dropped("multicast")
				}
			}
		}},
	})
}

func TestLANAsksForTheHost(t *testing.T) {
	both(t, []scenario{
		{"the host's slave answers containers alone", func(w *world) {
			ask := func(sender netip.Addr) []byte {
				if w.v6 {
					f := solicit(sender, w.host, mac(0x99))
					return f.macs(net.HardwareAddr{0x33, 0x33, 0xff, 0, 0, 2}, mac(0x99)).bytes()
				}
				return arp(broadcastMAC, mac(0x99), 1, mac(0x99), sender, net.HardwareAddr{0, 0, 0, 0, 0, 0}, w.host)
			}
			w.slaves(false)
			w.sendRaw(toHost(), ask(w.router)).ignored()
			w.sendRaw(toHost(), ask(w.backend)).untouched()
			w.slaves(true)
			w.sendRaw(toHost(), ask(w.router)).untouched()
		}},
	})
}
