// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/bpf"
)

// kernel is a source in memory.
type kernel struct {
	mu      sync.Mutex
	events  chan bpf.Event
	readers int
	lost    uint64
	fail    error
}

type reader struct {
	k      *kernel
	closed chan struct{}
	events chan bpf.Event
}

func (r *reader) Read() (bpf.Event, error) {
	r.k.mu.Lock()
	fail := r.k.fail
	r.k.mu.Unlock()
	if fail != nil {
		return bpf.Event{}, fail
	}
	select {
	case e := <-r.events:
		return e, nil
	case <-r.closed:
		return bpf.Event{}, os.ErrClosed
	}
}

func (r *reader) Close() error {
	r.k.mu.Lock()
	defer r.k.mu.Unlock()
	r.k.readers--
	close(r.closed)
	return nil
}

func (k *kernel) source(names Names) Source {
	return Source{
		Watch: func() (Reader, error) {
			k.mu.Lock()
			defer k.mu.Unlock()
			if k.readers > 0 {
				return nil, bpf.ErrWatched
			}
			k.readers++
			return &reader{k, make(chan struct{}), k.events}, nil
		},
		Lost: func() (uint64, error) {
			k.mu.Lock()
			defer k.mu.Unlock()
			return k.lost, nil
		},
		Names: func() (Names, error) { return names, nil },
	}
}

func at(text string) netip.AddrPort { return netip.MustParseAddrPort(text) }

var names = Names{
	Ends: map[netip.Addr]End{
		netip.MustParseAddr("10.1.0.2"): {Container: "web", Network: "shop"},
		netip.MustParseAddr("10.1.0.3"): {Container: "db-1", Network: "shop"},
	},
	Services: map[netip.Addr]End{netip.MustParseAddr("10.96.0.7"): {Service: "db", Network: "shop"}},
	Sandbox:  map[uint64]End{42: {Container: "web", Network: "shop"}},
	Device:   func(int) string { return "mst0" },
}

func TestEventsReadAsPeopleSpeak(t *testing.T) {
	for _, c := range []struct {
		event                 bpf.Event
		flow, outcome, detail string
	}{
		{bpf.Event{Kind: bpf.EventNew, Path: bpf.PathSocket, Protocol: bpf.ProtocolTCP, From: at("10.1.0.2:4000"), To: at("10.96.0.7:5432"), Via: at("10.1.0.3:5432"), Service: 1, Cookie: 42},
			"web → db:5432 tcp", "forwarded", "to db-1:5432"},
		{bpf.Event{Kind: bpf.EventEnd, Path: bpf.PathDirect, Protocol: bpf.ProtocolTCP, From: at("10.1.0.2:4000"), To: at("10.1.0.3:80"), Via: at("10.1.0.3:80"), Cookie: 42, Sent: 7, Received: 9},
			"web → db-1:80 tcp", "forwarded", "ended, 7 bytes sent, 9 received"},
		{bpf.Event{Kind: bpf.EventRefuse, Protocol: bpf.ProtocolUDP, To: at("10.96.0.7:1"), Cookie: 42, Reason: "no-backend", Direction: "socket"},
			"web → db:1 udp", "refused: no-backend", ""},
		{bpf.Event{Kind: bpf.EventDrop, Protocol: 58, From: at("[2001:db8::1]:0"), To: at("10.1.0.2:0"), IfIndex: 3, Reason: "isolated"},
			"2001:db8::1 → web icmp", "dropped: isolated", "at mst0"},
		{bpf.Event{Kind: bpf.EventNew, Path: bpf.PathEgress, Protocol: bpf.ProtocolTCP, From: at("10.1.0.2:4000"), To: at("192.0.2.9:443"), Via: at("192.0.2.2:61000"), IfIndex: 3},
			"web → 192.0.2.9:443 tcp", "forwarded", "as 192.0.2.2:61000"},
		{bpf.Event{Kind: bpf.EventDrop, IfIndex: 3, Reason: "malformed"}, "? → ?", "dropped: malformed", "at mst0"},
	} {
		e := names.name(c.event)
		require.Equal(t, []string{c.flow, c.outcome, c.detail}, []string{e.Flow(), e.Outcome(), e.Detail()})
	}
}

func TestAFloodAsksOnceForItsDevice(t *testing.T) {
	k := &kernel{events: make(chan bpf.Event)}
	asked, counting := 0, names
	counting.Device = func(int) string { asked++; return "mst0" }
	got := 0
	err := New(k.source(counting)).Watch(t.Context(), Filter{}, func(e Event) error {
		if e.Kind == EventBegun {
			go func() {
				for range 100 {
					k.events <- bpf.Event{Kind: bpf.EventDrop, IfIndex: 3}
				}
			}()
			return nil
		}
		require.Equal(t, "mst0", e.Device)
		if got++; got == 100 {
			return errors.New("enough")
		}
		return nil
	})
	require.EqualError(t, err, "enough")
	require.Equal(t, 1, asked)
}

func TestFilters(t *testing.T) {
	e := names.name(bpf.Event{Kind: bpf.EventRefuse, Protocol: bpf.ProtocolTCP, To: at("10.96.0.7:1"), Cookie: 42, Reason: "no-backend"})
	for _, c := range []struct {
		filter Filter
		match  bool
	}{
		{Filter{}, true},
		{Filter{Services: []string{"db"}}, true},
		{Filter{Services: []string{"10.96.0.7"}}, true},
		{Filter{Services: []string{"cache"}}, false},
		{Filter{Services: []string{"cache", "db"}}, true},
		{Filter{Networks: []string{"shop"}, Containers: []string{"web"}, Verdicts: []string{Refused}}, true},
		{Filter{Networks: []string{"shop"}, Verdicts: []string{Forwarded}}, false},
		{Filter{Verdicts: []string{"no-backend"}}, true},
		{Filter{Networks: []string{""}}, false},
	} {
		require.Equal(t, c.match, c.filter.Match(e), "%+v", c.filter)
		require.True(t, c.filter.Match(Event{Kind: EventLost}))
	}
}

func TestNobodyReadsWhileNobodyWatches(t *testing.T) {
	k := &kernel{events: make(chan bpf.Event)}
	h := New(k.source(names))
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		begun, done := make(chan struct{}, 1), make(chan error)
		go func() {
			done <- h.Watch(ctx, Filter{}, func(e Event) error {
				if e.Kind == EventBegun {
					begun <- struct{}{}
				}
				return nil
			})
		}()
		<-begun
		require.Equal(t, 1, h.Watchers())
		cancel()
		require.NoError(t, <-done)
		require.Zero(t, h.Watchers())
		k.mu.Lock()
		require.Zero(t, k.readers)
		k.mu.Unlock()
	}
}

func TestASlowWatcherLosesAndIsToldHowMuch(t *testing.T) {
	k := &kernel{events: make(chan bpf.Event)}
	h := New(k.source(names))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	slow, fast := make(chan Event), make(chan Event, 3*queue)
	hold := make(chan struct{})
	begun := make(chan struct{}, 2)
	go func() {
		_ = h.Watch(ctx, Filter{}, func(e Event) error {
			if e.Kind == EventBegun {
				begun <- struct{}{}
				<-hold
				return nil
			}
			slow <- e
			return nil
		})
	}()
	go func() {
		_ = h.Watch(ctx, Filter{}, func(e Event) error {
			if e.Kind == EventBegun {
				begun <- struct{}{}
			} else {
				fast <- e
			}
			return nil
		})
	}()
	<-begun
	<-begun
	const n = 2 * queue
	for sent := 0; sent < n; { // no faster than one of them can take them
		for range queue / 4 {
			k.events <- bpf.Event{Kind: bpf.EventNew, Protocol: bpf.ProtocolTCP}
			sent++
		}
		require.Eventually(t, func() bool { return len(fast) == sent }, 10*time.Second, time.Millisecond)
	}
	close(hold)
	for range queue {
		require.Equal(t, bpf.EventNew, (<-slow).Kind)
	}
	k.events <- bpf.Event{Kind: bpf.EventNew, Protocol: bpf.ProtocolTCP}
	lost := <-slow
	require.Equal(t, EventLost, lost.Kind)
	require.EqualValues(t, n-queue, lost.Lost)
	require.Equal(t, bpf.EventNew, (<-slow).Kind)
}

func TestWhatTheProgramsLoseIsTold(t *testing.T) {
	k := &kernel{events: make(chan bpf.Event)}
	h := New(k.source(names))
	err := h.Watch(t.Context(), Filter{Services: []string{"none"}}, func(e Event) error {
		switch e.Kind {
		case EventBegun:
			go func() {
				time.Sleep(lostEvery / 2)
				k.mu.Lock()
				k.lost = 5
				k.mu.Unlock()
			}()
			return nil
		case EventLost:
			require.EqualValues(t, 5, e.Lost)
			return errors.New("enough")
		}
		return errors.New(e.Kind)
	})
	require.EqualError(t, err, "enough")
}

func TestAReaderThatFailsEndsTheWatch(t *testing.T) {
	k := &kernel{events: make(chan bpf.Event), fail: errors.New("the ring broke")}
	err := New(k.source(names)).Watch(t.Context(), Filter{}, func(Event) error { return nil })
	require.EqualError(t, err, "the ring broke")
}
