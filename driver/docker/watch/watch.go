// SPDX-License-Identifier: Apache-2.0

// Package watch follows the engine's containers and tells the services what becomes of them.
package watch

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/sirupsen/logrus"

	"github.com/mustang-net/mustang/service"
)

// Containers is told what becomes of containers. Its methods are quick and are called from one
// goroutine, so in the order of the facts.
type Containers interface {
	// PutContainer replaces what was known of the container. The same may be told again.
	PutContainer(service.Container)
	// RemoveContainer forgets a container that was removed or has left all our networks.
	RemoveContainer(id string)
	// Gone takes an endpoint out at once, because its container's process has ended.
	Gone(endpointID string)
	// Expect tells whose endpoints are, by endpoint id, before their containers run, and which networks of ours those
	// are on, or will be.
	Expect(whose map[string]service.Container, networks map[string][]string)
	// PublishedNames are the names of those that have published ports on a network; all says that those of each are known,
	// and that the engine answers them.
	PublishedNames(network string) (names []string, all bool)
	// Sync says, once, that everything that was running has been told. Its error is only logged.
	Sync() error
}

// Networks learns what the plugin protocol does not tell. It is called from several goroutines.
type Networks interface {
	// SetNetworkName tells the name of a network.
	SetNetworkName(id, name string)
	// Collect tells which networks of ours the engine has, each with its endpoints, so that what it
	// has forgotten while nobody listened can go, and the subnets of those networks, ours or not, whose
	// addresses come from us; nil if they could not be read. It is called every ten seconds.
	Collect(known map[string]map[string]bool, subnets map[netip.Prefix]bool) error
}

// Options is what a [Watcher] works with; all but Driver and Applied is needed.
type Options struct {
	Client     *Client
	Containers Containers
	Networks   Networks
	Log        logrus.FieldLogger
	// Applied, if any, is told of every event: how long after it, by the engine's clock, the services knew.
	Applied func(lag time.Duration)
	// Answers tells whether the engine's resolver answers a name on a network with an address, and fails if it cannot be asked.
	Answers func(ctx context.Context, network, name string, addr netip.Addr) (bool, error)
	// Driver is the plugin's name, "mustang" if empty. Networks of a managed plugin's reference with
	// that name, such as mustang:latest, are ours too.
	Driver string
}

// timing is what tests make shorter.
type timing struct {
	call      time.Duration // of a call that takes no container's lock
	inspect   time.Duration // of the first inspect: a container that takes longer joins the slow ones
	slow      time.Duration // of a later one, to which it doubles
	early     time.Duration // of the inspect of a container that was created and does not run
	settle    time.Duration // after a container's names were asked for in its start
	retryMin  time.Duration // doubles up to retryMax
	retryMax  time.Duration
	stop      time.Duration // least time-out of `docker stop`, which is the engine's default
	drainMore time.Duration // after the stop time-out, until a signal counts as survived
}

var defaultTiming = timing{
	call:      5 * time.Second,
	inspect:   2 * time.Second,
	slow:      10 * time.Second,
	early:     500 * time.Millisecond,
	settle:    time.Second,
	retryMin:  100 * time.Millisecond,
	retryMax:  time.Second,
	stop:      10 * time.Second,
	drainMore: 5 * time.Second,
}

const (
	// Bounds of inspects that run at the same time. The slow ones have their own, so that any number
	// of containers that hang in their start leaves room for the others.
	maxInspects     = 8
	maxSlowInspects = 4
	// Those of containers that do not run are for starts to come, and wait behind nobody else's.
	maxEarlyInspects = 8
	// inbox takes bursts: the engine drops events for a reader that lags by more than 1,024.
	inboxSize = 4096
)

// Watcher follows one engine.
//
// One goroutine, Run's, owns all that is known and tells the services; what blocks (the API, the
// processes, timers) runs beside it and hands over functions through inbox.
type Watcher struct {
	client     *Client
	containers Containers
	nets       Networks
	log        logrus.FieldLogger
	answers    func(ctx context.Context, network, name string, addr netip.Addr) (bool, error)
	driver     string
	timing     timing
	inbox      chan func()
	exits      *exits      // nil if the kernel has no pidfds
	following  atomic.Bool // the engine answers, and its events come
	lost       atomic.Uint64
	applied    func(lag time.Duration)

	ctx      context.Context
	networks map[string]string  // our networks' names by id
	running  map[string]bool    // all running containers, ours or not
	records  map[string]*record // ours, and those not looked at yet
	unsynced map[string]bool    // of the first list, still to be looked at; nil before it
	synced   bool
	fresh    lane
	slow     lane
	early    lane
	starts   chan struct{} // holds one for each start that runs
}

// New makes a watcher that does nothing until Run.
func New(o Options) *Watcher {
	if o.Driver == "" {
		o.Driver = "mustang"
	}
	if o.Applied == nil {
		o.Applied = func(time.Duration) {}
	}
	return &Watcher{
		applied:    o.Applied,
		client:     o.Client,
		containers: o.Containers,
		nets:       o.Networks,
		log:        o.Log,
		answers:    o.Answers,
		driver:     o.Driver,
		timing:     defaultTiming,
		inbox:      make(chan func(), inboxSize),
		networks:   make(map[string]string),
		running:    make(map[string]bool),
		records:    make(map[string]*record),
		fresh:      lane{limit: maxInspects},
		slow:       lane{limit: maxSlowInspects},
		early:      lane{limit: maxEarlyInspects},
		starts:     make(chan struct{}, maxStarts),
	}
}

// Run follows the engine until ctx ends and returns its error. An engine that is absent, not ready or
// lost is waited for: at boot it serves its API only after the plugins have answered.
// Run is called once.
func (w *Watcher) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w.ctx = ctx
	if w.exits == nil {
		e, err := newExits()
		if err != nil {
			w.log.WithError(err).Warn("cannot watch processes: an ended container is noticed by the engine's event only")
		}
		w.exits = e
	}
	if w.exits != nil {
		go w.exits.run()
		defer w.exits.close()
	}
	go w.follow(ctx)
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case f := <-w.inbox:
			f()
		}
	}
}

// State tells whether the engine's events come, and how often they broke off.
func (w *Watcher) State() (following bool, lost uint64) { return w.following.Load(), w.lost.Load() }

// post hands f to Run's goroutine.
func (w *Watcher) post(f func()) {
	select {
	case w.inbox <- f:
	case <-w.ctx.Done():
	}
}

// follow connects again and again.
func (w *Watcher) follow(ctx context.Context) {
	wait := w.timing.retryMin
	for ctx.Err() == nil {
		listed, err := w.session(ctx)
		if ctx.Err() != nil {
			return
		}
		switch {
		case listed:
			wait = w.timing.retryMin
			w.lost.Add(1)
			w.log.WithError(err).Warn("lost the engine's events; connecting again")
		case wait == w.timing.retryMin: // once for a run of failures
			w.log.WithError(err).Info("waiting for the engine")
		default:
			w.log.WithError(err).Debug("still waiting for the engine")
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, w.timing.retryMax)
	}
}

// session subscribes, lists, and then passes events on until the stream breaks. It reports whether it
// got as far as the lists.
func (w *Watcher) session(ctx context.Context) (listed bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := w.within(ctx, w.client.negotiate); err != nil {
		return false, err
	}
	s, err := w.subscribe(ctx, cancel)
	if err != nil {
		return false, err
	}
	defer s.close()
	var nets []network
	var list []summary
	err = w.within(ctx, func(ctx context.Context) (err error) {
		if nets, err = w.client.networks(ctx); err != nil {
			return err
		}
		list, err = w.client.list(ctx)
		return err
	})
	if err != nil {
		return false, err
	}
	w.following.Store(true) // before what the list brings is told of: who hears of it may ask
	defer w.following.Store(false)
	w.post(func() { w.listed(nets, list) })
	go w.collect(ctx)
	for {
		m, err := s.next()
		if err != nil {
			return true, fmt.Errorf("read the engine's events: %w", err)
		}
		w.post(func() { w.event(m) })
	}
}

// subscribe bounds the wait for the stream's head only; the stream itself may be silent for days.
func (w *Watcher) subscribe(ctx context.Context, cancel context.CancelFunc) (*stream, error) {
	timer := time.AfterFunc(w.timing.call, cancel)
	s, err := w.client.events(ctx, time.Now())
	if !timer.Stop() && err == nil {
		s.close()
		err = errors.New("subscribe to the engine's events: timed out")
	}
	return s, err
}

func (w *Watcher) within(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, w.timing.call)
	defer cancel()
	return f(ctx)
}

// listed takes what exists now. Everything is looked at anew, also what was known before the
// connection was lost; what has gone meanwhile is found missing.
func (w *Watcher) listed(nets []network, list []summary) {
	clear(w.networks)
	for _, n := range nets {
		if isDriver(n.Driver, w.driver) {
			w.learn(n.ID, n.Name)
		}
	}
	clear(w.running)
	first := w.unsynced == nil
	w.unsynced = make(map[string]bool)
	for _, s := range list {
		if !s.runs() {
			continue
		}
		w.running[s.ID] = true
		w.unsynced[s.ID] = true
		w.record(s.ID)
	}
	for _, r := range w.records {
		r.stale, r.revived = true, false
		w.look(r)
	}
	if first {
		w.log.WithFields(logrus.Fields{"containers": len(w.running), "networks": len(w.networks)}).Info("following the engine")
	}
	w.settled("")
	for _, s := range list {
		if !s.runs() && w.concerns(s) {
			w.foresee(s.ID)
		}
	}
}

func (w *Watcher) learn(id, name string) {
	w.networks[id] = name
	w.nets.SetNetworkName(id, name)
}

// settled notes that a container of the list has been told of, or is none of ours.
func (w *Watcher) settled(id string) {
	delete(w.unsynced, id)
	if !w.synced && w.unsynced != nil && len(w.unsynced) == 0 {
		w.synced = true
		if err := w.containers.Sync(); err != nil {
			w.log.WithError(err).Error("services did not take over what runs")
		}
	}
}

func (w *Watcher) event(m events.Message) {
	switch m.Type {
	case events.ContainerEventType:
		w.containerEvent(m)
	case events.NetworkEventType:
		w.networkEvent(m)
	}
	w.applied(max(0, time.Since(time.Unix(0, m.TimeNano)))) // the clock may have been set back meanwhile
}

func (w *Watcher) networkEvent(m events.Message) {
	if !isDriver(m.Actor.Attributes["type"], w.driver) {
		return
	}
	switch m.Action {
	case events.ActionCreate, events.ActionConnect:
		if name := m.Actor.Attributes["name"]; name != "" && w.networks[m.Actor.ID] != name {
			w.learn(m.Actor.ID, name)
		}
	case events.ActionDestroy, events.ActionRemove:
		delete(w.networks, m.Actor.ID)
		return
	}
	id := m.Actor.Attributes["container"]
	switch {
	case id == "":
	case m.Action == events.ActionConnect && w.running[id]:
		w.look(w.record(id))
	case m.Action == events.ActionConnect:
		// It is being started, and its lock is held: its start event will come when an inspect no
		// longer has to wait.
	case w.records[id] != nil:
		w.look(w.records[id])
	}
}
