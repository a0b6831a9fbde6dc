// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"slices"
	"testing"
)

// exceeded is a time exceeded message about quoted, from a router or an end.
func exceeded(w *world, f frame, quoted []byte) frame {
	if w.v6 {
		return icmp(f.saddr, f.daddr, 3, 0, 0, quoted)
	}
	return icmp(f.saddr, f.daddr, 11, 0, 0, quoted)
}

func TestICMPErrors(t *testing.T) {
	open := func(w *world) {
		w.web()
		w.send(fromClient(), w.request(syn)).toBackend(w.sent(syn))
	}
	between := func(w *world, f frame, port bool, quoted frame) frame {
		return unreachable(f.saddr, f.daddr, port, quoted.quote())
	}
	both(t, []scenario{
		{"an error of the backend names the VIP, outside and inside", func(w *world) {
			open(w)
			w.send(fromBackend(), unreachable(w.backend, w.client, true, w.sent(syn).quote())).
				toClient(unreachable(w.vip, w.client, true, w.request(syn).quote()))
		}},
		{"an error about a datagram is translated like one about a stream", func(w *world) {
			w.dns()
			query, sent := udp(w.client, 5000, w.vip, 53, "q"), udp(w.client, 5000, w.backend, 5353, "q")
			w.send(fromClient(), query).toBackend(sent)
			// the checksum of a quoted datagram is not translated: who reads it goes by the ports
			got := w.send(fromBackend(), unreachable(w.backend, w.client, true, sent.quote()))
			want := sent.quote()
			q := query.quote()
			copy(q[len(q)-2:], want[len(want)-2:])
			got.toClient(unreachable(w.vip, w.client, true, q))
		}},
		{"an error of the client about a reply names the backend", func(w *world) {
			open(w)
			w.send(fromBackend(), w.reply(synAck)).toClient(w.received(synAck))
			w.send(fromClient(), unreachable(w.client, w.vip, true, w.received(synAck).quote())).
				toBackend(unreachable(w.client, w.backend, true, w.reply(synAck).quote()))
		}},
		{"an error of a router on the way to an external backend keeps the router's name", func(w *world) {
			w.service(w.vip, 80, ProtocolTCP, w.backendAt(w.outside, 8080))
			sent := tcp(w.client, 5000, w.outside, 8080, syn)
			w.send(fromClient(), w.request(syn)).toStack(sent)
			router := w.gateway
			w.send(toClient(99), exceeded(w, ip(router, w.client, 0, nil), sent.quote())).
				toStack(exceeded(w, ip(router, w.client, 0, nil), w.request(syn).quote()))
		}},
		{"an error about a call to one's own VIP comes back to the caller", func(w *world) {
			w.web()
			call, sent := tcp(w.backend, 5000, w.vip, 80, syn), tcp(w.vip, 5000, w.backend, 8080, syn)
			w.send(fromBackend(), call).toBackend(sent)
			w.send(fromBackend(), unreachable(w.backend, w.vip, true, sent.quote())).
				toBackend(unreachable(w.vip, w.backend, true, call.quote()))
		}},
		{"a forged quote is not translated", func(w *world) {
			open(w)
			forged := tcp(w.client, 5001, w.backend, 8080, syn)
			in := between(w, ip(w.backend, w.client, 0, nil), true, forged)
			w.send(fromBackend(), in).toClient(in)
		}},
		{"a quote of somebody else's flow is not translated", func(w *world) {
			open(w)
			third := unreachable(w.client, w.backend2, true, w.sent(syn).quote())
			w.send(fromClient(), third).toBackend2(third)
		}},
		{"a sandbox of another network cannot pass isolation with a quote of a flow", func(w *world) {
			w.service(w.vip, 80, ProtocolTCP, w.backendAt(w.backend2, 8080))
			sent := tcp(w.client, 5000, w.backend2, 8080, syn)
			w.send(fromClient(), w.request(syn)).toBackend2(sent)
			w.movesTo(network2)
			w.send(fromBackend(), unreachable(w.backend, w.client, true, sent.quote())).dropped("isolated")
		}},
		{"a quote that is cut before the ports is no flow's", func(w *world) {
			open(w)
			quoted := w.sent(syn).quote()
			in := unreachable(w.backend, w.client, true, quoted[:len(quoted)-5])
			w.send(fromBackend(), in).toClient(in)
			in = unreachable(w.backend, w.client, true, quoted[:len(quoted)-8])
			padded := append(in.macs(backendHostMAC, backendMAC).bytes(), quoted[len(quoted)-8:]...) // not of the packet
			out := append(in.macs(clientMAC, clientHostMAC).bytes(), quoted[len(quoted)-8:]...)
			w.sendRaw(fromBackend(), padded).is(verdictRedirect, out)
		}},
		{"an error about an error is never answered", func(w *world) {
			inner := unreachable(w.poolOnly, w.client, true, w.sent(syn).quote())
			in := unreachable(w.client, w.poolOnly, true, inner.quote())
			w.send(fromClient(), in).dropped("no-service")
			first, _ := in.fragments(32)
			w.send(fromClient(), first).dropped("no-service")
		}},
	})
	run(t, false, []scenario{
		{"a quoted packet with IPv4 options is translated too", func(w *world) {
			open(w)
			sent, request := w.sent(syn), w.request(syn)
			sent.options, request.options = []byte{1, 1, 1, 0}, []byte{1, 1, 1, 0}
			w.send(fromBackend(), unreachable(w.backend, w.client, true, sent.quote())).
				toClient(unreachable(w.vip, w.client, true, request.quote()))
		}},
		{"fragmentation needed keeps the MTU of the next hop", func(w *world) {
			open(w)
			w.send(fromBackend(), icmp(w.backend, w.client, 3, 4, 1400, w.sent(syn).quote())).
				toClient(icmp(w.vip, w.client, 3, 4, 1400, w.request(syn).quote()))
		}},
	})
	run(t, true, []scenario{
		{"packet too big keeps the MTU of the next hop", func(w *world) {
			open(w)
			w.send(fromBackend(), icmp(w.backend, w.client, 2, 0, 1400, w.sent(syn).quote())).
				toClient(icmp(w.vip, w.client, 2, 0, 1400, w.request(syn).quote()))
		}},
		{"a quote of all that fits is translated", func(w *world) {
			open(w)
			long := data
			long.data = string(slices.Repeat([]byte("long "), 200))
			sent, request := w.sent(long), w.request(long)
			all := func(f frame, like frame) []byte { // the inner checksum stays the sender's
				b := f.packet(f.body(f.saddr, f.daddr))
				copy(b[40+16:40+18], like.packet(like.body(like.saddr, like.daddr))[40+16:])
				return b
			}
			w.send(fromBackend(), unreachable(w.backend, w.client, true, all(sent, sent))).
				toClient(unreachable(w.vip, w.client, true, all(request, sent)))
		}},
	})
}
