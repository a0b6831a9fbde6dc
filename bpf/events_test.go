// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// watcher is a reader of events with what it has read.
type watcher struct {
	t      testing.TB
	events chan Event
}

func watching(t testing.TB) *watcher {
	t.Helper()
	reader, err := testDP.Watch()
	require.NoError(t, err)
	w := &watcher{t: t, events: make(chan Event, 10000)}
	done := make(chan error)
	go func() {
		for {
			e, err := reader.Read()
			if err != nil {
				done <- err
				return
			}
			w.events <- e
		}
	}()
	t.Cleanup(func() {
		require.NoError(t, reader.Close())
		require.ErrorIs(t, <-done, os.ErrClosed)
	})
	return w
}

// next is the next event, with its time checked and taken out.
func (w *watcher) next() Event {
	w.t.Helper()
	select {
	case e := <-w.events:
		require.WithinDuration(w.t, time.Now(), e.Time, time.Second)
		e.Time = time.Time{}
		return e
	case <-time.After(2 * time.Second):
		require.FailNow(w.t, "no event came")
		return Event{}
	}
}

// nothing says that there was no other event.
func (w *watcher) nothing() {
	w.t.Helper()
	select {
	case e := <-w.events:
		require.FailNow(w.t, "an event came", "%+v", e)
	case <-time.After(30 * time.Millisecond):
	}
}

func TestEventsOfPackets(t *testing.T) {
	both(t, []scenario{
		{"a translated flow begins and ends", func(w *world) {
			id := w.backendAt(w.backend, 8080)
			service := w.service(w.vip, 80, ProtocolTCP, id)
			events := watching(w)
			flow := Event{
				Kind: EventNew, Path: PathPacket, Protocol: ProtocolTCP, From: port(w.client, 5000), To: port(w.vip, 80),
				Via: port(w.backend, 8080), Service: service.ID, Backend: id, IfIndex: clientIf,
			}
			w.send(fromClient(), tcp(w.client, 5000, w.vip, 80, syn))
			require.Equal(w, flow, events.next())
			w.send(fromBackend(), tcp(w.backend, 8080, w.client, 5000, synAck))
			w.send(fromClient(), tcp(w.client, 5000, w.vip, 80, ack))
			fin := segment{flags: flagFIN | flagACK}
			w.send(fromBackend(), tcp(w.backend, 8080, w.client, 5000, fin))
			events.nothing()
			w.send(fromClient(), tcp(w.client, 5000, w.vip, 80, fin))
			flow.Kind = EventEnd
			require.Equal(w, flow, events.next())
			w.send(fromClient(), tcp(w.client, 5000, w.vip, 80, fin)) // repeated
			events.nothing()
		}},
		{"a reset by the backend ends it, too", func(w *world) {
			id := w.backendAt(w.backend, 8080)
			service := w.service(w.vip, 80, ProtocolTCP, id)
			w.send(fromClient(), tcp(w.client, 5000, w.vip, 80, syn))
			events := watching(w)
			w.send(fromBackend(), tcp(w.backend, 8080, w.client, 5000, segment{flags: flagRST}))
			require.Equal(w, Event{
				Kind: EventEnd, Path: PathPacket, Protocol: ProtocolTCP, From: port(w.client, 5000), To: port(w.vip, 80),
				Via: port(w.backend, 8080), Service: service.ID, Backend: id, IfIndex: backendIf,
			}, events.next())
		}},
		{"a flow leaves with another source", func(w *world) {
			w.leaves(true)
			events := watching(w)
			p := w.send(fromClient(), tcp(w.client, 5000, w.outside, 443, syn)).sourcePort()
			flow := Event{
				Kind: EventNew, Path: PathEgress, Protocol: ProtocolTCP, From: port(w.client, 5000), To: port(w.outside, 443),
				Via: port(w.host, p), IfIndex: clientIf,
			}
			require.Equal(w, flow, events.next())
			w.send(fromOutside(), tcp(w.outside, 443, w.host, p, segment{flags: flagRST}))
			flow.Kind, flow.IfIndex = EventEnd, uplinkIf
			require.Equal(w, flow, events.next())
		}},
		{"drops and refusals have their reason", func(w *world) {
			w.service(w.vip, 80, ProtocolTCP)
			events := watching(w)
			w.send(fromClient(), tcp(w.client, 5000, w.vip, 80, syn))
			require.Equal(w, Event{
				Kind: EventRefuse, Protocol: ProtocolTCP, From: port(w.client, 5000), To: port(w.vip, 80), IfIndex: clientIf,
				Reason: "no-backend", Meaning: reasons[reasonNoBackend][1], Direction: "from-container",
			}, events.next())
			w.send(toClient(99), udp(w.foreign, 53, w.client, 5000, "x")).dropped("isolated to-container")
			require.Equal(w, Event{
				Kind: EventDrop, Protocol: ProtocolUDP, From: port(w.foreign, 53), To: port(w.client, 5000), IfIndex: clientIf,
				Reason: "isolated", Meaning: reasons[reasonIsolated][1], Direction: "to-container",
			}, events.next())
			events.nothing()
		}},
		{"nobody is told while nobody watches", func(w *world) {
			w.service(w.vip, 80, ProtocolTCP, w.backendAt(w.backend, 8080))
			watched, err := testDP.Watched()
			require.NoError(w, err)
			require.False(w, watched)
			w.send(fromClient(), tcp(w.client, 5000, w.vip, 80, syn))
			w.send(fromClient(), tcp(w.foreign, 5000, w.vip, 80, syn))
			watching(w).nothing()
		}},
	})
}

func TestAFloodOfEventsIsCounted(t *testing.T) {
	w := newWorld(t, false)
	events := watching(w)
	before, err := testDP.LostEvents()
	require.NoError(t, err)
	const n = 5000 // in less than a window or two
	spoofed := tcp(w.foreign, 5000, w.vip, 80, syn).macs(clientHostMAC, clientMAC).bytes()
	_, err = testDP.program("lxc_ingress").Run(&ebpf.RunOptions{Data: spoofed, Context: at(clientIf, clientIf), Repeat: n})
	require.NoError(t, err)
	lost, err := testDP.LostEvents()
	require.NoError(t, err)
	require.Greater(t, lost, before)
	require.Eventually(t, func() bool { return len(events.events)+int(lost-before) == n }, 2*time.Second, 10*time.Millisecond)
}

func TestEventsHaveOneReader(t *testing.T) {
	clearMaps(t)
	one, err := testDP.Watch()
	require.NoError(t, err)
	watched, err := testDP.Watched()
	require.NoError(t, err)
	require.True(t, watched)
	_, err = testDP.Watch()
	require.ErrorIs(t, err, ErrWatched)
	require.NoError(t, one.Close())
	two, err := testDP.Watch()
	require.NoError(t, err)
	require.NoError(t, two.Close())
	watched, err = testDP.Watched()
	require.NoError(t, err)
	require.False(t, watched)
}

func TestEventsOfSockets(t *testing.T) {
	sb := newSandbox(t)
	for _, v6 := range []bool{false, true} {
		addLocal(t, addressesOf(v6).backend, addressesOf(v6).client)
	}
	for _, f := range families {
		t.Run("streams, over "+f.name, func(t *testing.T) {
			s := sb.begin(t, f.v6)
			w := s.world
			server, addr := s.server(f.af, unix.SOCK_STREAM, port(w.backend, 0))
			id := w.backendAt(w.backend, addr.Port())
			service := w.service(w.vip, 80, ProtocolTCP, id)
			events := watching(t)
			for _, to := range []netip.AddrPort{port(w.vip, 80), port(w.backend, addr.Port())} {
				k := s.socket(f.af, unix.SOCK_STREAM)
				k.ok("connect", to)
				flow := Event{
					Kind: EventNew, Path: PathSocket, Protocol: ProtocolTCP, From: k.ok("getsockname").Addr, To: to,
					Via: port(w.backend, addr.Port()), Service: service.ID, Backend: id, Cookie: s.cookie,
				}
				flow.From = port(flow.From.Addr().Unmap(), flow.From.Port())
				if to.Addr() == w.backend {
					flow.Path, flow.Service, flow.Backend = PathDirect, 0, 0
				}
				require.Equal(t, flow, events.next())
				accepted := sock{s, server.ok("accept").FD, f.af}
				k.ok("send")
				accepted.ok("recvfrom")
				k.ok("close")
				accepted.ok("close")
				end := events.next()
				require.InDelta(t, 6, end.Sent, 1)
				require.InDelta(t, 0, end.Received, 1)
				flow.Kind, flow.Sent, flow.Received = EventEnd, end.Sent, end.Received
				require.Equal(t, flow, end)
			}
			events.nothing() // of what was accepted
		})
		t.Run("datagrams and refusals, over "+f.name, func(t *testing.T) {
			s := sb.begin(t, f.v6)
			w := s.world
			id := w.backendAt(w.backend, 5353)
			service := w.service(w.vip, 53, ProtocolUDP, id)
			events := watching(t)
			k := s.socket(f.af, unix.SOCK_DGRAM)
			k.ok("sendto", port(w.vip, 53))
			require.Equal(t, Event{
				Kind: EventNew, Path: PathSocket, Protocol: ProtocolUDP, To: port(w.vip, 53), Via: port(w.backend, 5353),
				Service: service.ID, Backend: id, Cookie: s.cookie,
			}, events.next())
			k.ok("sendto", port(w.vip, 53))
			s.socket(f.af, unix.SOCK_STREAM).fails(unix.ECONNREFUSED, "connect", port(w.vip, 81))
			require.Equal(t, Event{
				Kind: EventRefuse, Protocol: ProtocolTCP, To: port(w.vip, 81), Cookie: s.cookie,
				Reason: "no-service", Meaning: reasons[reasonNoService][1], Direction: "socket",
			}, events.next())
			events.nothing()
		})
	}
}
