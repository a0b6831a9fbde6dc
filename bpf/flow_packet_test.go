// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

// The states of mst_ct, enum mst_ct_state.
const (
	stateNew = iota
	stateEstablished
	stateClosing
)

func TestConntrack(t *testing.T) {
	open := func(w *world) { // a flow of which both ends know
		w.send(fromClient(), w.request(syn)).toBackend(w.sent(syn))
		w.send(fromBackend(), w.reply(synAck)).toClient(w.received(synAck))
		w.send(fromClient(), w.request(ack)).toBackend(w.sent(ack))
	}
	states := func(w *world) []uint8 {
		return []uint8{w.ct(w.request(syn), dirRequest).State, w.ct(w.reply(syn), dirReply).State}
	}
	both(t, []scenario{
		{"a SYN begins a flow, the answer and its acknowledgement establish it", func(w *world) {
			w.web()
			w.send(fromClient(), w.request(syn)).toBackend(w.sent(syn))
			require.Equal(w, []uint8{stateNew, stateNew}, states(w))
			w.send(fromClient(), w.request(syn)).toBackend(w.sent(syn))
			require.Equal(w, []uint8{stateNew, stateNew}, states(w))
			w.send(fromBackend(), w.reply(synAck)).toClient(w.received(synAck))
			require.Equal(w, []uint8{stateNew, stateEstablished}, states(w))
			w.send(fromClient(), w.request(ack)).toBackend(w.sent(ack))
			require.Equal(w, []uint8{stateEstablished, stateEstablished}, states(w))
		}},
		{"a FIN closes its direction and is still translated", func(w *world) {
			w.web()
			open(w)
			w.send(fromClient(), w.request(fin)).toBackend(w.sent(fin))
			require.Equal(w, []uint8{stateClosing, stateEstablished}, states(w))
			w.send(fromBackend(), w.reply(fin)).toClient(w.received(fin))
			require.Equal(w, []uint8{stateClosing, stateClosing}, states(w))
			w.send(fromClient(), w.request(ack)).toBackend(w.sent(ack))
			require.Equal(w, []uint8{stateClosing, stateClosing}, states(w))
		}},
		{"a reset closes the flow and is translated", func(w *world) {
			w.web()
			open(w)
			w.send(fromClient(), w.request(rst)).toBackend(w.sent(rst))
			require.Equal(w, uint8(stateClosing), states(w)[0])
		}},
		{"a stream stays with its backend when that leaves the service", func(w *world) {
			s := w.service(w.vip, 80, ProtocolTCP, w.backendAt(w.backend, 8080))
			open(w)
			s.Slots = []uint32{w.backendAt(w.backend2, 8080)}
			w.putService(s)
			w.send(fromClient(), w.request(data)).toBackend(w.sent(data))
			require.NoError(w, testDP.DeleteBackend(1))
			w.send(fromClient(), w.request(data)).toBackend(w.sent(data))
		}},
		{"a client that reuses its port after a FIN gets a backend anew", func(w *world) {
			s := w.service(w.vip, 80, ProtocolTCP, w.backendAt(w.backend, 8080))
			open(w)
			w.send(fromClient(), w.request(fin)).toBackend(w.sent(fin))
			s.Slots = []uint32{w.backendAt(w.backend2, 8080)}
			w.putService(s)
			w.send(fromClient(), w.request(syn)).toBackend2(tcp(w.client, 5000, w.backend2, 8080, syn))
		}},
		{"a SYN within an open flow does not move it", func(w *world) {
			s := w.service(w.vip, 80, ProtocolTCP, w.backendAt(w.backend, 8080))
			open(w)
			s.Slots = []uint32{w.backendAt(w.backend2, 8080)}
			w.putService(s)
			w.send(fromClient(), w.request(syn)).toBackend(w.sent(syn))
		}},
		{"datagrams move on when their backend is gone, and only then", func(w *world) {
			id := w.dns()
			query, sent := udp(w.client, 5000, w.vip, 53, "q"), udp(w.client, 5000, w.backend, 5353, "q")
			w.send(fromClient(), query).toBackend(sent)
			second := w.backendAt(w.backend2, 5353)
			w.putService(Service{Frontend: Frontend{Addr: w.vip, Port: 53, Protocol: ProtocolUDP}, ID: 1, Network: network1, Slots: []uint32{second}})
			w.send(fromClient(), query).toBackend(sent)
			require.NoError(w, testDP.DeleteBackend(id))
			w.send(fromClient(), query).toBackend2(udp(w.client, 5000, w.backend2, 5353, "q"))
			require.Equal(w, second, w.ct(query, dirRequest).Backend)
		}},
		{"datagrams go to whom they went last: the backend's own replies stay its own, and the VIP's are the VIP's again", func(w *world) {
			w.dns()
			query, direct := udp(w.client, 5000, w.vip, 53, "q"), udp(w.client, 5000, w.backend, 5353, "q")
			answer := udp(w.backend, 5353, w.client, 5000, "a")
			w.send(fromClient(), query).toBackend(direct)
			w.send(fromBackend(), answer).toClient(udp(w.vip, 53, w.client, 5000, "a"))
			w.send(fromClient(), direct).toBackend(direct)
			w.send(fromBackend(), answer).toClient(answer)
			w.send(fromClient(), query).toBackend(direct)
			w.send(fromBackend(), answer).toClient(udp(w.vip, 53, w.client, 5000, "a"))
		}},
		{"the flows of an endpoint end with it", func(w *world) {
			w.dns()
			answer := udp(w.backend, 5353, w.client, 5000, "a")
			w.send(fromClient(), udp(w.client, 5000, w.vip, 53, "q")).toBackend(udp(w.client, 5000, w.backend, 5353, "q"))
			require.NoError(w, testDP.DeleteEndpoint(w.client))
			require.NoError(w, testDP.PutEndpoint(Endpoint{Addr: w.client, IfIndex: clientIf, Network: network1, Redirect: true, MAC: clientMAC, HostMAC: clientHostMAC}))
			w.send(fromBackend(), answer).toClient(answer)
		}},
		{"a tuple of a flow that ended may be taken over by another VIP's", func(w *world) {
			id := w.web()
			w.service(w.vip2, 80, ProtocolTCP, id)
			open(w)
			w.send(fromBackend(), w.reply(fin)).toClient(w.received(fin))
			w.send(fromClient(), tcp(w.client, 5000, w.vip2, 80, syn)).toBackend(w.sent(syn))
			w.send(fromBackend(), w.reply(synAck)).toClient(tcp(w.vip2, 80, w.client, 5000, synAck))
		}},
		{"a forged reply from another sandbox is not translated", func(w *world) {
			w.web()
			open(w)
			w.send(fromBackend(), tcp(w.backend2, 8080, w.client, 5000, data)).dropped("spoofed")
			w.send(fromBackend(), tcp(w.vip, 80, w.client, 5000, data)).dropped("spoofed")
		}},
	})
}

func TestTimeouts(t *testing.T) {
	type expiry struct {
		name    string
		proto   Protocol
		state   []segment // what the client sends before
		seconds uint64
	}
	table := []expiry{
		{"a SYN without answer", ProtocolTCP, nil, 20},
		{"an established stream", ProtocolTCP, []segment{ack}, 7440},
		{"a stream that is closing", ProtocolTCP, []segment{ack, fin}, 240},
		{"a datagram flow", ProtocolUDP, nil, 120},
	}
	var scenarios []scenario
	for _, e := range table {
		first := func(w *world) frame {
			if e.proto == ProtocolUDP {
				return udp(w.client, 5000, w.vip, 80, "x")
			}
			return w.request(syn)
		}
		next := func(w *world) frame {
			if e.proto == ProtocolUDP {
				return first(w)
			}
			return w.request(data)
		}
		begin := func(w *world) {
			w.service(w.vip, 80, e.proto, w.backendAt(w.backend, 0))
			require.Equal(w, uint32(verdictRedirect), w.send(fromClient(), first(w)).verdict)
			for _, s := range e.state {
				require.Equal(w, uint32(verdictRedirect), w.send(fromClient(), w.request(s)).verdict)
			}
			w.putService(Service{Frontend: Frontend{Addr: w.vip, Port: 80, Protocol: e.proto}, ID: 1, Network: network1})
		}
		scenarios = append(scenarios,
			scenario{e.name + " lives on until its timeout, and use renews it", func(w *world) {
				begin(w)
				for range 3 {
					w.age(next(w), dirRequest, e.seconds-2)
					require.Empty(w, w.send(fromClient(), next(w)).counted)
				}
			}},
			scenario{e.name + " is forgotten after its timeout", func(w *world) {
				begin(w)
				w.age(next(w), dirRequest, e.seconds+1)
				want := map[string]uint64{"no-flow from-container": 1}
				if e.proto == ProtocolUDP {
					want = map[string]uint64{"no-backend from-container": 1}
				}
				require.Equal(w, want, w.send(fromClient(), next(w)).counted)
			}})
	}
	scenarios = append(scenarios,
		scenario{"who sends datagrams one way for long is answered", func(w *world) {
			w.dns()
			query, sent := udp(w.client, 5000, w.vip, 53, "q"), udp(w.client, 5000, w.backend, 5353, "q")
			for range 3 {
				w.send(fromClient(), query).toBackend(sent)
				w.age(query, dirRequest, 80)
				w.age(udp(w.backend, 5353, w.client, 5000, "a"), dirReply, 80)
			}
			w.send(fromBackend(), udp(w.backend, 5353, w.client, 5000, "a")).toClient(udp(w.vip, 53, w.client, 5000, "a"))
		}},
		scenario{"who is sent datagrams one way for long stays with its backend", func(w *world) {
			w.dns()
			query, sent, answer := udp(w.client, 5000, w.vip, 53, "q"), udp(w.client, 5000, w.backend, 5353, "q"), udp(w.backend, 5353, w.client, 5000, "a")
			w.send(fromClient(), query).toBackend(sent)
			for range 3 {
				w.age(query, dirRequest, 80)
				w.age(answer, dirReply, 80)
				w.send(fromBackend(), answer).toClient(udp(w.vip, 53, w.client, 5000, "a"))
			}
			w.putService(Service{Frontend: Frontend{Addr: w.vip, Port: 53, Protocol: ProtocolUDP}, ID: 1, Network: network1})
			w.send(fromClient(), query).toBackend(sent)
		}},
		scenario{"a tuple that another flow has taken over is not renewed", func(w *world) {
			id := w.web()
			w.service(w.vip2, 80, ProtocolTCP, id)
			w.send(fromClient(), w.request(syn)).toBackend(w.sent(syn))
			w.send(fromBackend(), w.reply(fin)).toClient(w.received(fin))
			w.send(fromClient(), tcp(w.client, 5000, w.vip2, 80, syn)).toBackend(w.sent(syn))
			w.age(w.request(syn), dirRequest, 10)
			w.age(w.reply(syn), dirReply, 25)
			w.send(fromClient(), w.request(ack)).toBackend(w.sent(ack))
			w.send(fromBackend(), w.reply(synAck)).toClient(w.reply(synAck))
		}})
	both(t, scenarios)
}

func TestChoiceOfBackend(t *testing.T) {
	// hits counts which of two backends each of n new flows gets
	port := uint16(10000)
	hits := func(w *world, n int) (first, second int) {
		for range n {
			port++
			r := w.send(fromClient(), tcp(w.client, port, w.vip, 80, syn))
			require.Equal(w, uint32(verdictRedirect), r.verdict)
			switch string(r.out[:6]) {
			case string(backendMAC):
				first++
			case string(backend2MAC):
				second++
			}
		}
		require.Equal(w, n, first+second)
		return first, second
	}
	track := func(w *world, addr netip.Addr, id uint32, cookie uint64, tracked bool) {
		require.NoError(w, testDP.PutBackend(Backend{ID: id, Addr: addr, Port: 8080, NetnsCookie: cookie}))
		require.NoError(w, testDP.PutSandbox(Sandbox{Cookie: cookie, SocketLB: true, Tracked: tracked}))
	}
	listen := func(w *world, cookie uint64, port uint16) {
		require.NoError(w, testDP.maps["listeners"].Put(&mstListenerKey{Cookie: cookie, Port: be(port)}, uint32(1)))
	}
	pair := func(w *world) (Service, uint32, uint32) {
		one, two := w.backendAt(w.backend, 8080), w.backendAt(w.backend2, 8080)
		return w.service(w.vip, 80, ProtocolTCP, one, two), one, two
	}
	both(t, []scenario{
		{"two backends share new flows about evenly", func(w *world) {
			pair(w)
			first, _ := hits(w, 400)
			require.InDelta(w, 200, first, 70)
		}},
		{"a weight of three gets three times the flows", func(w *world) {
			one, two := w.backendAt(w.backend, 8080), w.backendAt(w.backend2, 8080)
			w.service(w.vip, 80, ProtocolTCP, one, one, one, two)
			first, _ := hits(w, 400)
			require.InDelta(w, 300, first, 60)
		}},
		{"a slot whose backend is gone is passed over", func(w *world) {
			_, _, two := pair(w)
			require.NoError(w, testDP.DeleteBackend(two))
			first, _ := hits(w, 50)
			require.Equal(w, 50, first)
		}},
		{"a tracked backend that does not listen is passed over", func(w *world) {
			_, one, two := pair(w)
			track(w, w.backend, one, 11, true)
			track(w, w.backend2, two, 12, true)
			listen(w, 11, 8080)
			listen(w, 12, 8081)
			first, _ := hits(w, 50)
			require.Equal(w, 50, first)
		}},
		{"a backend that is not tracked is taken at its word", func(w *world) {
			_, one, two := pair(w)
			track(w, w.backend, one, 11, true)
			track(w, w.backend2, two, 12, false)
			_, second := hits(w, 50)
			require.Equal(w, 50, second)
		}},
		{"if nobody listens a backend's own kernel refuses", func(w *world) {
			_, one, two := pair(w)
			track(w, w.backend, one, 11, true)
			track(w, w.backend2, two, 12, true)
			hits(w, 20)
		}},
		{"a backend in reserve gets flows only while none in a slot listens", func(w *world) {
			s, one, two := pair(w)
			s.Slots, s.Reserve = []uint32{one}, []uint32{two}
			w.putService(s)
			track(w, w.backend, one, 11, true)
			track(w, w.backend2, two, 12, true)
			listen(w, 12, 8080)
			_, second := hits(w, 20)
			require.Equal(w, 20, second)
			listen(w, 11, 8080)
			first, _ := hits(w, 20)
			require.Equal(w, 20, first)
		}},
		{"listeners mean nothing to datagrams", func(w *world) {
			id := w.dns()
			track(w, w.backend, id, 11, true)
			w.send(fromClient(), udp(w.client, 5000, w.vip, 53, "q")).toBackend(udp(w.client, 5000, w.backend, 8080, "q"))
		}},
		{"a client with affinity keeps its backend", func(w *world) {
			s, _, _ := pair(w)
			s.Affinity = 60
			w.putService(s)
			first, second := hits(w, 40)
			require.True(w, first == 40 || second == 40, "%d and %d", first, second)
		}},
		{"affinity ends with its time", func(w *world) {
			s, one, two := pair(w)
			s.Affinity = 60
			w.putService(s)
			was, _ := hits(w, 1)
			key := mstAffinityKey{Client: addrOf(w.client), Service: s.ID}
			var a mstAffinity
			require.NoError(w, testDP.maps["affinity"].Lookup(&key, &a))
			require.Equal(w, was == 1, a.Backend == one)
			s.Slots = []uint32{one + two - a.Backend}
			w.putService(s)
			a.Seen -= 61e9
			require.NoError(w, testDP.maps["affinity"].Put(&key, &a))
			now, _ := hits(w, 1)
			require.NotEqual(w, was, now)
		}},
		{"affinity to a backend that is drained is forgotten", func(w *world) {
			s, one, two := pair(w)
			s.Affinity = 60
			w.putService(s)
			was, _ := hits(w, 1)
			s.Slots = []uint32{two}
			if was == 0 {
				s.Slots = []uint32{one}
			}
			w.putService(s)
			now, _ := hits(w, 1)
			require.NotEqual(w, was, now)
		}},
		{"affinity to a backend that is gone is forgotten", func(w *world) {
			s, _, _ := pair(w)
			s.Affinity = 60
			w.putService(s)
			was, _ := hits(w, 1)
			require.NoError(w, testDP.DeleteBackend(uint32(2-was)))
			now, _ := hits(w, 1)
			require.NotEqual(w, was, now)
		}},
	})
}
