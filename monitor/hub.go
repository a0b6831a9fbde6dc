// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/mustang-net/mustang/bpf"
)

// Reader gives events; Read's error is [os.ErrClosed] after Close.
type Reader interface {
	Read() (bpf.Event, error)
	Close() error
}

// Source is where events come from.
type Source struct {
	Watch func() (Reader, error) // begins to read; one reader at a time
	Lost  func() (uint64, error) // events that no reader got, ever
	Names func() (Names, error)  // what addresses mean now
}

const (
	// queue is how many events wait for a watcher that is slow; what comes then is lost for it.
	queue = 4096
	// namesLast is how long names are taken for true; namesLeast, how soon after the last look a name that is missing
	// makes us look again.
	namesLast  = 2 * time.Second
	namesLeast = 100 * time.Millisecond
	lostEvery  = time.Second
)

// Hub reads the events for all watchers, and only while there are any.
type Hub struct {
	source Source

	mu       sync.Mutex
	watchers map[*watcher]struct{}
	reader   Reader
}

type watcher struct {
	filter Filter
	events chan Event
	lost   uint64
	failed error // why events was closed
}

// New makes a hub without watchers.
func New(s Source) *Hub { return &Hub{source: s, watchers: map[*watcher]struct{}{}} }

// Watch tells of [EventBegun], then of events until ctx ends, which is no error, or tell fails.
func (h *Hub) Watch(ctx context.Context, filter Filter, tell func(Event) error) error {
	w := &watcher{filter: filter, events: make(chan Event, queue)}
	if err := h.join(w); err != nil {
		return err
	}
	defer h.leave(w)
	if err := tell(Event{Time: time.Now(), Kind: EventBegun}); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-w.events:
			if !ok {
				return w.failed
			}
			if err := tell(e); err != nil {
				return err
			}
		}
	}
}

// Watchers counts who watches.
func (h *Hub) Watchers() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.watchers)
}

func (h *Hub) join(w *watcher) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.reader == nil {
		r, err := h.source.Watch()
		if err != nil {
			return fmt.Errorf("watch the datapath: %w", err)
		}
		h.reader = r
		go h.read(r)
	}
	h.watchers[w] = struct{}{}
	return nil
}

func (h *Hub) leave(w *watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.watchers, w)
	if len(h.watchers) > 0 || h.reader == nil {
		return
	}
	_ = h.reader.Close() // the programs cease by themselves, too
	h.reader = nil
}

// read hands events out until the reader is closed.
func (h *Hub) read(r Reader) {
	stop := make(chan struct{})
	defer close(stop)
	go h.followLost(stop)
	var names Names
	var looked time.Time
	for {
		raw, err := r.Read()
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				h.fail(r, err)
			}
			return
		}
		if age := time.Since(looked); age > namesLast || age > namesLeast && !names.known(raw) {
			if now, err := h.source.Names(); err == nil { // else the old ones are better than none
				names = now.remembering()
			}
			looked = time.Now()
		}
		h.tell(names.name(raw))
	}
}

// tell queues an event for whom it is for. Nobody waits for a watcher that is slow: it is told what it has lost.
func (h *Hub) tell(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watchers {
		if !w.filter.Match(e) {
			continue
		}
		if w.lost > 0 && len(w.events) < cap(w.events)-1 {
			w.events <- Event{Time: e.Time, Kind: EventLost, Lost: w.lost}
			w.lost = 0
		}
		if w.lost > 0 || len(w.events) == cap(w.events) {
			w.lost += max(1, e.Lost)
			continue
		}
		w.events <- e
	}
}

// followLost tells of what the programs could not tell of.
func (h *Hub) followLost(stop <-chan struct{}) {
	before, err := h.source.Lost()
	ticks := time.NewTicker(lostEvery)
	defer ticks.Stop()
	for {
		select {
		case <-stop:
			return
		case <-ticks.C:
		}
		now, again := h.source.Lost()
		if again == nil && err == nil && now > before {
			h.tell(Event{Time: time.Now(), Kind: EventLost, Lost: now - before})
		}
		before, err = now, again
	}
}

// fail ends all watching.
func (h *Hub) fail(r Reader, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watchers {
		w.failed = err
		close(w.events)
		delete(h.watchers, w)
	}
	if h.reader == r {
		_ = r.Close()
		h.reader = nil
	}
}
