// SPDX-License-Identifier: Apache-2.0

package bpf

import "testing"

// TestForgedOutside has somebody outside send in the name of containers, into flows between them.
func TestForgedOutside(t *testing.T) {
	open := func(w *world) {
		w.leaves(true)
		w.web()
		w.dns()
		w.send(fromClient(), w.request(syn)).toBackend(w.sent(syn))
		w.send(fromBackend(), w.reply(synAck)).toClient(w.received(synAck))
	}
	both(t, []scenario{
		{"a segment in the name of the backend is not the service's", func(w *world) {
			open(w)
			forged := w.reply(segment{flags: flagRST, seq: 7001})
			w.send(fromOutside(), forged).untouched()
			w.send(toClient(uplinkIf), forged).dropped("spoofed to-container")
		}},
		{"an error is believed neither from there nor from a router that is not on the way", func(w *world) {
			open(w)
			for reason, told := range map[string]frame{
				"spoofed to-container":  unreachable(w.backend, w.client, true, w.sent(syn).quote()),
				"isolated to-container": unreachable(w.router, w.client, false, w.sent(syn).quote()),
			} {
				w.send(fromOutside(), told).untouched()
				w.send(toClient(uplinkIf), told).dropped(reason)
			}
		}},
		{"a later fragment follows no head of the backend's", func(w *world) {
			open(w)
			w.send(fromClient(), udp(w.client, 5000, w.vip, 53, "q")).toBackend(udp(w.client, 5000, w.backend, 5353, "q"))
			first, later := udp(w.backend, 5353, w.client, 5000, "0123456789abcdef").fragments(16)
			w.send(fromBackend(), first)
			w.send(fromOutside(), later).untouched()
			w.send(toClient(uplinkIf), later).dropped("spoofed to-container")
			w.send(fromBackend(), later).toClient(later.from(w.vip))
		}},
		{"what a container began at a published port is nobody's to go on with", func(w *world) {
			w.leaves(true)
			w.publish(w.host, 80, ProtocolTCP)
			w.send(fromClient(), tcp(w.client, 5000, w.host, 80, syn)).toBackend(tcp(w.client, 5000, w.backend, 8080, syn))
			w.send(fromOutside(), tcp(w.client, 5000, w.host, 80, data)).dropped("spoofed to-container")
			w.send(fromClient(), tcp(w.client, 5000, w.host, 80, data)).toBackend(tcp(w.client, 5000, w.backend, 8080, data))
		}},
		{"nobody outside is the host, whom a container has asked", func(w *world) {
			w.leaves(true)
			w.send(fromClient(), udp(w.client, 5000, w.host, 53, "q")).untouched()
			w.send(fromOutside(), udp(w.host, 53, w.client, 5000, "a")).dropped("spoofed to-container")
			told := unreachable(w.host, w.client, true, udp(w.client, 5000, w.host, 53, "q").quote())
			w.send(fromOutside(), told).untouched()
			w.send(toClient(uplinkIf), told).dropped("spoofed to-container")
			w.send(toClient(0), udp(w.host, 53, w.client, 5000, "a")).untouched()
		}},
		{"the host itself tells of what it could not hand on", func(w *world) {
			open(w)
			w.send(toClient(0), exceeded(w, ip(w.gateway, w.client, 0, nil), w.sent(syn).quote())).
				toStack(exceeded(w, ip(w.gateway, w.client, 0, nil), w.request(syn).quote()))
		}},
	})
}
