// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func counted(t testing.TB) []Traffic {
	t.Helper()
	got, err := testDP.Traffic()
	require.NoError(t, err)
	return got
}

func TestTrafficOfSocketsThatAreTranslatedWhenTheyConnect(t *testing.T) {
	sb := newSandbox(t)
	for _, v6 := range []bool{false, true} {
		addLocal(t, addressesOf(v6).backend)
	}
	for _, f := range families {
		t.Run("streams count when they close, over "+f.name, func(t *testing.T) {
			s := sb.begin(t, f.v6)
			w := s.world
			server, addr := s.server(f.af, unix.SOCK_STREAM, port(w.backend, 0))
			id := w.backendAt(w.backend, addr.Port())
			service := w.service(w.vip, 80, ProtocolTCP, id)
			for i := range uint64(3) {
				k := s.socket(f.af, unix.SOCK_STREAM)
				k.ok("connect", port(w.vip, 80))
				require.Equal(t, i+1, counted(t)[0].Connections)
				accepted := sock{s, server.ok("accept").FD, f.af}
				k.ok("send")
				k.ok("send")
				accepted.ok("recvfrom")
				accepted.ok("send")
				k.ok("recvfrom")
				k.ok("close")
				accepted.ok("close")
			}
			require.EventuallyWithT(t, func(c *assert.CollectT) {
				got, err := testDP.Traffic()
				require.NoError(c, err)
				require.Len(c, got, 1)
				require.Equal(c, Traffic{service.ID, id, 3, got[0].ToBackend, got[0].FromBackend}, got[0])
				require.InDelta(c, 3*11, got[0].ToBackend, 3, "10 bytes of payload, and at least one of SYN and FIN")
				require.InDelta(c, 3*5.5, got[0].FromBackend, 2, "5 bytes of payload, and perhaps a FIN")
			}, 2*time.Second, 5*time.Millisecond)
		})
		t.Run("datagram sockets count once for each backend, over "+f.name, func(t *testing.T) {
			s := sb.begin(t, f.v6)
			w := s.world
			_, addr := s.server(f.af, unix.SOCK_DGRAM, port(w.backend, 0))
			id := w.backendAt(w.backend, addr.Port())
			service := w.service(w.vip, 53, ProtocolUDP, id)
			k := s.socket(f.af, unix.SOCK_DGRAM)
			k.ok("sendto", port(w.vip, 53))
			k.ok("sendto", port(w.vip, 53))
			s.socket(f.af, unix.SOCK_DGRAM).ok("connect", port(w.vip, 53))
			require.Equal(t, []Traffic{{Service: service.ID, Backend: id, Connections: 2}}, counted(t))
		})
		t.Run("nothing else counts, over "+f.name, func(t *testing.T) {
			s := sb.begin(t, f.v6)
			w := s.world
			server, addr := s.server(f.af, unix.SOCK_STREAM, port(w.backend, 0))
			w.service(w.vip, 80, ProtocolTCP)
			k := s.socket(f.af, unix.SOCK_STREAM)
			k.fails(unix.ECONNREFUSED, "connect", port(w.vip, 80))
			k.ok("connect", port(w.backend, addr.Port())) // the socket has been a VIP's before, in vain
			accepted := sock{s, server.ok("accept").FD, f.af}
			k.ok("send")
			k.ok("close")
			accepted.ok("close")
			require.Empty(t, counted(t))
		})
	}
}

func TestTrafficPerPacket(t *testing.T) {
	both(t, []scenario{
		{"a flow counts once, its payload with each packet", func(w *world) {
			id := w.backendAt(w.backend, 8080)
			service := w.service(w.vip, 80, ProtocolTCP, id)
			out := func(s segment) frame { return tcp(w.client, 5000, w.vip, 80, s) }
			w.send(fromClient(), out(syn)).toBackend(tcp(w.client, 5000, w.backend, 8080, syn))
			w.send(fromBackend(), tcp(w.backend, 8080, w.client, 5000, synAck))
			require.Equal(w, []Traffic{{service.ID, id, 1, 0, 0}}, counted(w))
			w.send(fromClient(), out(segment{flags: flagACK, data: "hello"}))
			w.send(fromBackend(), tcp(w.backend, 8080, w.client, 5000, segment{flags: flagACK, data: "hello, you"}))
			w.send(fromClient(), out(syn)) // repeated
			require.Equal(w, []Traffic{{service.ID, id, 1, 5, 10}}, counted(w))
			w.send(fromClient(), tcp(w.client, 5001, w.vip, 80, syn))
			require.Equal(w, []Traffic{{service.ID, id, 2, 5, 10}}, counted(w))
		}},
		{"a refused flow does not count, nor what is not translated", func(w *world) {
			w.service(w.vip, 80, ProtocolTCP)
			w.send(fromClient(), tcp(w.client, 5000, w.vip, 80, syn))
			w.send(fromClient(), tcp(w.client, 5000, w.backend, 80, syn))
			require.Empty(w, counted(w))
		}},
		{"counters of backends that are gone are collected", func(w *world) {
			one, two := w.backendAt(w.backend, 8080), w.backendAt(w.backend2, 8080)
			first, second := w.service(w.vip, 80, ProtocolTCP, one), w.service(w.vip, 81, ProtocolTCP, two)
			w.send(fromClient(), tcp(w.client, 5000, w.vip, 80, syn))
			w.send(fromClient(), tcp(w.client, 5000, w.vip, 81, syn))
			require.Equal(w, []Traffic{{first.ID, one, 1, 0, 0}, {second.ID, two, 1, 0, 0}}, counted(w))
			require.NoError(w, testDP.DeleteBackend(one))
			require.NoError(w, testDP.CollectTraffic())
			require.NoError(w, testDP.CollectTraffic())
			require.Equal(w, []Traffic{{second.ID, two, 1, 0, 0}}, counted(w))
		}},
	})
}
