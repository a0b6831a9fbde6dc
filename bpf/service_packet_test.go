// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	syn    = segment{flags: flagSYN, seq: 1000, window: 64240}
	synAck = segment{flags: flagSYN | flagACK, seq: 7000, ack: 1001, window: 65160}
	ack    = segment{flags: flagACK, seq: 1001, ack: 7001, window: 501}
	data   = segment{flags: flagACK | flagPSH, seq: 1001, ack: 7001, window: 501, data: "GET / odd"}
	fin    = segment{flags: flagFIN | flagACK, seq: 1010, ack: 7001, window: 501}
	rst    = segment{flags: flagRST, seq: 1010}
)

// flow is a TCP flow from the client to vip:80, sent on to backend:8080.
func (w *world) web() uint32 {
	w.Helper()
	id := w.backendAt(w.backend, 8080)
	w.service(w.vip, 80, ProtocolTCP, id)
	return id
}

func (w *world) request(s segment) frame  { return tcp(w.client, 5000, w.vip, 80, s) }
func (w *world) sent(s segment) frame     { return tcp(w.client, 5000, w.backend, 8080, s) }
func (w *world) reply(s segment) frame    { return tcp(w.backend, 8080, w.client, 5000, s) }
func (w *world) received(s segment) frame { return tcp(w.vip, 80, w.client, 5000, s) }

// dns is a UDP service on vip:53 at backend:5353.
func (w *world) dns() uint32 {
	w.Helper()
	id := w.backendAt(w.backend, 5353)
	w.service(w.vip, 53, ProtocolUDP, id)
	return id
}

func TestServiceTranslation(t *testing.T) {
	both(t, []scenario{
		{"a SYN to a VIP goes to the backend and is entered both ways", func(w *world) {
			id := w.web()
			w.send(fromClient(), w.request(syn)).toBackend(w.sent(syn))
			request, reply := w.ct(w.request(syn), dirRequest), w.ct(w.reply(syn), dirReply)
			require.NotNil(w, request)
			require.NotNil(w, reply)
			require.Equal(w, []any{w.client, w.backend, be(5000), be(8080), id},
				[]any{request.Saddr.ip(), request.Daddr.ip(), request.Sport, request.Dport, request.Backend})
			require.Equal(w, []any{w.vip, w.client, be(80), be(5000), id},
				[]any{reply.Saddr.ip(), reply.Daddr.ip(), reply.Sport, reply.Dport, reply.Backend})
		}},
		{"a whole TCP conversation is translated both ways", func(w *world) {
			w.web()
			w.send(fromClient(), w.request(syn)).toBackend(w.sent(syn))
			w.send(fromBackend(), w.reply(synAck)).toClient(w.received(synAck))
			w.send(fromClient(), w.request(ack)).toBackend(w.sent(ack))
			w.send(fromClient(), w.request(data)).toBackend(w.sent(data))
			w.send(fromBackend(), w.reply(data)).toClient(w.received(data))
		}},
		{"the port of the frontend stays if the backend has none", func(w *world) {
			w.service(w.vip, 80, ProtocolTCP, w.backendAt(w.backend, 0))
			w.send(fromClient(), w.request(syn)).toBackend(tcp(w.client, 5000, w.backend, 80, syn))
		}},
		{"a datagram and its answer are translated", func(w *world) {
			w.dns()
			w.send(fromClient(), udp(w.client, 5000, w.vip, 53, "query")).toBackend(udp(w.client, 5000, w.backend, 5353, "query"))
			w.send(fromBackend(), udp(w.backend, 5353, w.client, 5000, "answer")).toClient(udp(w.vip, 53, w.client, 5000, "answer"))
		}},
		{"every checksum comes out right, whatever the payload", func(w *world) {
			w.dns()
			for n := range 300 {
				text := string(make([]byte, n%7)) + string([]byte{byte(n), byte(n * 7), byte(n >> 3)})
				w.send(fromClient(), udp(w.client, uint16(1000+n), w.vip, 53, text)).
					toBackend(udp(w.client, uint16(1000+n), w.backend, 5353, text))
			}
		}},
		{"a service without ports serves every port and protocol", func(w *world) {
			w.service(w.vip, 0, ProtocolAny, w.backendAt(w.backend, 0))
			w.send(fromClient(), tcp(w.client, 5000, w.vip, 1234, syn)).toBackend(tcp(w.client, 5000, w.backend, 1234, syn))
			w.send(fromClient(), udp(w.client, 5000, w.vip, 999, "x")).toBackend(udp(w.client, 5000, w.backend, 999, "x"))
		}},
		{"a port and protocol win over the port alone, and that over the address alone", func(w *world) {
			w.service(w.vip, 0, ProtocolAny, w.backendAt(w.backend, 1))
			w.service(w.vip, 80, ProtocolAny, w.backendAt(w.backend, 2))
			w.service(w.vip, 80, ProtocolTCP, w.backendAt(w.backend, 3))
			w.send(fromClient(), tcp(w.client, 5000, w.vip, 80, syn)).toBackend(tcp(w.client, 5000, w.backend, 3, syn))
			w.send(fromClient(), udp(w.client, 5000, w.vip, 80, "x")).toBackend(udp(w.client, 5000, w.backend, 2, "x"))
			w.send(fromClient(), tcp(w.client, 5000, w.vip, 81, syn)).toBackend(tcp(w.client, 5000, w.backend, 1, syn))
		}},
		{"protocol NONE with a port serves TCP and UDP on that port only", func(w *world) {
			w.service(w.vip, 5201, ProtocolAny, w.backendAt(w.backend, 5201))
			w.send(fromClient(), tcp(w.client, 5000, w.vip, 5201, syn)).toBackend(tcp(w.client, 5000, w.backend, 5201, syn))
			w.send(fromClient(), udp(w.client, 5000, w.vip, 5201, "x")).toBackend(udp(w.client, 5000, w.backend, 5201, "x"))
			in := udp(w.client, 5000, w.vip, 5202, "x")
			w.send(fromClient(), in).answered(unreachable(w.vip, w.client, true, in.quote()), "no-service")
		}},
		{"a backend outside is left to the stack, and its replies come back through lxc_egress", func(w *world) {
			w.service(w.vip, 80, ProtocolTCP, w.backendAt(w.outside, 8080))
			w.send(fromClient(), w.request(syn)).toStack(tcp(w.client, 5000, w.outside, 8080, syn))
			w.send(toClient(99), tcp(w.outside, 8080, w.client, 5000, synAck)).toStack(w.received(synAck))
		}},
		{"a backend that may not be redirected to is left to the stack", func(w *world) {
			require.NoError(w, testDP.PutEndpoint(Endpoint{Addr: w.backend, IfIndex: backendIf, Network: network1, MAC: backendMAC}))
			w.web()
			w.send(fromClient(), w.request(syn)).toStack(w.sent(syn))
		}},
		{"a backend of another network is reached through the VIP only", func(w *world) {
			w.service(w.vip, 80, ProtocolTCP, w.backendAt(w.foreign, 8080))
			w.send(fromClient(), w.request(syn)).is(verdictRedirect, tcp(w.client, 5000, w.foreign, 8080, syn).macs(mac(5), mac(0x15)).bytes())
			w.send(fromClient(), tcp(w.client, 5001, w.foreign, 8080, syn)).dropped("isolated")
		}},
		{"a member that calls its own VIP reaches itself, and the answer comes back from the VIP", func(w *world) {
			w.web()
			hairpin := tcp(w.backend, 5000, w.vip, 80, syn)
			w.send(fromBackend(), hairpin).toBackend(tcp(w.vip, 5000, w.backend, 8080, syn))
			w.send(fromBackend(), tcp(w.backend, 8080, w.vip, 5000, synAck)).toBackend(tcp(w.vip, 80, w.backend, 5000, synAck))
			w.send(fromBackend(), tcp(w.backend, 5000, w.vip, 80, data)).toBackend(tcp(w.vip, 5000, w.backend, 8080, data))
		}},
		{"two VIPs with one backend may share a client's port: the second flow gets one of ours", func(w *world) {
			id := w.web()
			w.service(w.vip2, 80, ProtocolTCP, id)
			w.send(fromClient(), w.request(syn)).toBackend(w.sent(syn))
			second := w.send(fromClient(), tcp(w.client, 5000, w.vip2, 80, syn))
			port := second.sourcePort()
			require.GreaterOrEqual(w, port, uint16(61000))
			second.toBackend(tcp(w.client, port, w.backend, 8080, syn))
			w.send(fromBackend(), tcp(w.backend, 8080, w.client, port, synAck)).toClient(tcp(w.vip2, 80, w.client, 5000, synAck))
			w.send(fromBackend(), w.reply(synAck)).toClient(w.received(synAck))
		}},
		{"a client's port that a flow of the VIP has is not free for the backend itself", func(w *world) {
			w.web()
			w.send(fromClient(), w.request(syn)).toBackend(w.sent(syn))
			w.send(fromClient(), w.sent(syn)).dropped("ct-collision")
		}},
		{"a client's port that a flow of the VIP had is free for the backend itself", func(w *world) {
			w.web()
			w.send(fromClient(), w.request(syn)).toBackend(w.sent(syn))
			w.send(fromBackend(), w.reply(fin)).toClient(w.received(fin))
			w.send(fromClient(), w.sent(syn)).toBackend(w.sent(syn))
			w.send(fromBackend(), w.reply(synAck)).toClient(w.reply(synAck))
		}},
		{"mark, priority and cb that a container set mean nothing", func(w *world) {
			w.web()
			h := fromClient()
			h.ctx.Mark, h.ctx.Priority, h.ctx.Cb = 0xdeadbeef, 7, [5]uint32{1, 2, 3, 4, 5}
			w.send(h, w.request(syn)).toBackend(w.sent(syn))
		}},
	})
}

func TestServiceRefusals(t *testing.T) {
	// a reset as RFC 9293 (3.5.2) wants it
	reset := func(w *world, dst uint16, s segment) frame { return tcp(w.vip, dst, w.client, 5000, s) }
	both(t, []scenario{
		{"a SYN to an unknown port of a VIP is reset", func(w *world) {
			w.web()
			w.send(fromClient(), tcp(w.client, 5000, w.vip, 81, syn)).
				answered(reset(w, 81, segment{flags: flagRST | flagACK, ack: 1001}), "no-service")
		}},
		{"a SYN with data is acknowledged in full by its reset", func(w *world) {
			w.web()
			s := segment{flags: flagSYN, seq: 0xffffffff, data: "fast open"}
			w.send(fromClient(), tcp(w.client, 5000, w.vip, 81, s)).
				answered(reset(w, 81, segment{flags: flagRST | flagACK, ack: 9}), "no-service")
		}},
		{"Ethernet padding of a SYN is not acknowledged", func(w *world) {
			w.web()
			in := tcp(w.client, 5000, w.vip, 81, syn)
			in.trailer = 6
			w.send(fromClient(), in).answered(reset(w, 81, segment{flags: flagRST | flagACK, ack: 1001}), "no-service")
		}},
		{"mid-flow TCP without a flow is reset with its own acknowledgement", func(w *world) {
			w.web()
			w.send(fromClient(), w.request(data)).answered(reset(w, 80, segment{flags: flagRST, seq: 7001}), "no-flow")
			w.send(fromClient(), w.request(fin)).answered(reset(w, 80, segment{flags: flagRST, seq: 7001}), "no-flow")
			require.Nil(w, w.ct(w.request(data), dirRequest))
		}},
		{"a reset is never answered", func(w *world) {
			w.web()
			w.send(fromClient(), w.request(rst)).dropped("no-flow")
		}},
		{"a datagram to an unknown port of a VIP gets port unreachable", func(w *world) {
			w.web()
			in := udp(w.client, 5000, w.vip, 81, "a datagram longer than what is quoted")
			w.send(fromClient(), in).answered(unreachable(w.vip, w.client, true, in.quote()), "no-service")
			in = udp(w.client, 5000, w.vip, 80, "")
			w.send(fromClient(), in).answered(unreachable(w.vip, w.client, true, in.quote()), "no-service")
		}},
		{"a service without a backend refuses at once", func(w *world) {
			w.service(w.vip, 80, ProtocolAny)
			w.send(fromClient(), w.request(syn)).answered(reset(w, 80, segment{flags: flagRST | flagACK, ack: 1001}), "no-backend")
			in := udp(w.client, 5000, w.vip, 80, "x")
			w.send(fromClient(), in).answered(unreachable(w.vip, w.client, true, in.quote()), "no-backend")
		}},
		{"a service whose backends are all gone from the map refuses at once", func(w *world) {
			w.service(w.vip, 80, ProtocolTCP, 41, 42)
			w.send(fromClient(), w.request(syn)).answered(reset(w, 80, segment{flags: flagRST | flagACK, ack: 1001}), "no-backend")
		}},
		{"another network's VIP refuses at once", func(w *world) {
			w.putService(Service{Frontend: Frontend{Addr: w.foreignVIP, Port: 80}, ID: 9, Network: network2, Slots: []uint32{w.backendAt(w.foreign, 0)}})
			refusesAll(w, w.foreignVIP, "not-member")
		}},
		{"a service of network 0 is everybody's", func(w *world) {
			w.putService(Service{Frontend: Frontend{Addr: w.vip, Port: 80}, ID: 9, Slots: []uint32{w.backendAt(w.backend, 8080)}})
			w.send(fromClient(), w.request(syn)).toBackend(w.sent(syn))
		}},
		{"an address of the pool without a service refuses at once", func(w *world) {
			refusesAll(w, w.poolOnly, "no-service")
		}},
		{"a protocol that services do not carry is refused", func(w *world) {
			w.service(w.vip, 0, ProtocolAny, w.backendAt(w.backend, 0))
			in := ip(w.client, w.vip, 47, raw("generic routing encapsulation"))
			w.send(fromClient(), in).answered(unreachable(w.vip, w.client, true, in.quote()), "no-service")
		}},
		{"a VIP answers ping of any size", func(w *world) {
			w.web()
			for _, text := range []string{"", "x", "ping", string(make([]byte, 1400))} {
				w.send(fromClient(), echo(w.client, w.vip, false, text).hops(9)).answered(echo(w.vip, w.client, true, text).hops(9))
			}
		}},
		{"a VIP without ports of its own answers ping too", func(w *world) {
			w.service(w.vip, 0, ProtocolAny)
			w.send(fromClient(), echo(w.client, w.vip, false, "ping")).answered(echo(w.vip, w.client, true, "ping"))
		}},
		{"ICMP errors to a VIP about unknown flows are dropped, never answered", func(w *world) {
			w.web()
			in := unreachable(w.client, w.vip, true, tcp(w.vip, 80, w.client, 5000, syn).quote())
			w.send(fromClient(), in).dropped("no-service")
		}},
	})
}

// refusesAll checks that nothing of vip is reached, and that senders hear of it at once: a socket that is busy connecting
// would keep an ICMP error for a second, but not a reset.
func refusesAll(w *world, vip netip.Addr, reason string) {
	w.send(fromClient(), tcp(w.client, 5000, vip, 80, syn)).
		answered(tcp(vip, 80, w.client, 5000, segment{flags: flagRST | flagACK, ack: 1001}), reason)
	for _, in := range []frame{udp(w.client, 5000, vip, 80, "x"), echo(w.client, vip, false, "ping")} {
		w.send(fromClient(), in).answered(unreachable(vip, w.client, true, in.quote()), reason)
	}
}
