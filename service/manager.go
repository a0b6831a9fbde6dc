// SPDX-License-Identifier: Apache-2.0

package service

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/state"
)

// DefaultPools are the service pools of a host that configures none, one per family.
var DefaultPools = []netip.Prefix{
	netip.MustParsePrefix("10.96.0.0/16"),
	netip.MustParsePrefix("fd6d:7374:10::/96"),
}

// Options are the settings of a [Manager]; the zero value is usable.
type Options struct {
	// Pools are where VIPs come from, [DefaultPools] if empty. An IPv4 pool is at most a /23, an
	// IPv6 pool at most a /111: its first block is kept for hand-made services, see [Manager.AddNetwork].
	// No VIP is made outside of them; one that the store has from wider pools stays, with a warning.
	Pools []netip.Prefix
	// HostAddr reports whether an address is the host's own, which no VIP may be: none is made while it
	// fails. nil means never.
	HostAddr func(netip.Addr) (bool, error)
	// Log gets what a user should know and no caller is told of, such as a bad label. nil discards it.
	Log *logrus.Logger
}

// Manager holds the desired services and makes the maps agree with them.
//
// It has two tables: facts (networks, endpoints, containers, hand-made services), from which the entry
// of any frontend can be computed at any time, and what it last saw or wrote in the maps. A change
// marks the frontends it concerns, and flush makes those entries equal. All methods may be called from
// several goroutines.
type Manager struct {
	store    state.Store
	maps     Maps
	pools    []pool
	hostAddr func(netip.Addr) (bool, error)
	log      *logrus.Logger
	now      func() time.Time

	mu      sync.RWMutex
	changed chan struct{} // closed at the next change
	err     error         // of the last flush or commit
	writes  Writes

	// Facts.
	hand       map[uint32]*handService
	byFrontend map[bpf.Frontend]*handService
	byName     map[string]*handService // hand-made services that have a name
	handVIPs   map[netip.Addr][]uint32 // ids of the hand-made services at an address, ascending
	networks   map[string]*network     // by Network.ID
	nameVIPs   map[netip.Addr]*named   // services of names by VIP
	published  map[bpf.Frontend]*published
	portAddrs  map[netip.Addr]int       // addresses of the host's in published, with how many ranges are at each
	endpoints  map[string]*endpoint     // by Endpoint.ID
	byAddr     map[netip.Addr]*endpoint // the last endpoint put with the address
	byCookie   map[uint64][]*endpoint   // endpoints of a sandbox
	containers map[string]*container    // by Container.ID
	byEndpoint map[string]*container    // by Endpoint.ID, known before the endpoint or after
	drained    map[string]bool          // Container.ID → drained by the user

	// Ids.
	ids      map[uint32]struct{}     // service ids in use
	adopt    map[bpf.Frontend]uint32 // service ids found in the maps
	nextID   uint32                  // of services
	backends backendTable
	reserved uint32 // backend ids below it may have been used, says the store
	unsaved  map[nameKey]struct{}

	// What the maps hold.
	applied map[bpf.Frontend]applied
	dirty   map[bpf.Frontend]struct{}
	found   map[bpf.Frontend][]uint32 // slots at start; nil once in sync
	synced  bool
	begun   time.Time // when this process did
}

// New loads the desired state from store and adopts the ids it finds there and in maps. It writes
// nothing: entries are written by changes, [Manager.Sync] and [Manager.Reconcile]. The caller keeps
// ownership of store and maps.
func New(store state.Store, maps Maps, opts Options) (*Manager, error) {
	if len(opts.Pools) == 0 {
		opts.Pools = DefaultPools
	}
	pools, err := newPools(opts.Pools)
	if err != nil {
		return nil, err
	}
	if opts.HostAddr == nil {
		opts.HostAddr = func(netip.Addr) (bool, error) { return false, nil }
	}
	if opts.Log == nil {
		opts.Log = logrus.New()
		opts.Log.SetOutput(io.Discard)
	}
	m := newManager()
	m.store, m.maps, m.pools, m.hostAddr, m.log = store, maps, pools, opts.HostAddr, opts.Log
	m.begun = m.now()
	if err := m.load(); err != nil {
		return nil, fmt.Errorf("load the services: %w", err)
	}
	m.warnOutside()
	services, err := m.observe()
	if err != nil {
		return nil, err
	}
	m.adoptIDs(services)
	return m, nil
}

// newManager makes the empty tables.
func newManager() *Manager {
	return &Manager{
		now:        time.Now,
		changed:    make(chan struct{}),
		hand:       map[uint32]*handService{},
		byFrontend: map[bpf.Frontend]*handService{},
		byName:     map[string]*handService{},
		handVIPs:   map[netip.Addr][]uint32{},
		networks:   map[string]*network{},
		nameVIPs:   map[netip.Addr]*named{},
		published:  map[bpf.Frontend]*published{},
		portAddrs:  map[netip.Addr]int{},
		endpoints:  map[string]*endpoint{},
		byAddr:     map[netip.Addr]*endpoint{},
		byCookie:   map[uint64][]*endpoint{},
		containers: map[string]*container{},
		byEndpoint: map[string]*container{},
		drained:    map[string]bool{},
		ids:        map[uint32]struct{}{},
		adopt:      map[bpf.Frontend]uint32{},
		nextID:     1,
		backends:   newBackendTable(),
		unsaved:    map[nameKey]struct{}{},
		applied:    map[bpf.Frontend]applied{},
		dirty:      map[bpf.Frontend]struct{}{},
		found:      map[bpf.Frontend][]uint32{},
	}
}

// adoptIDs remembers what the maps held at start, so that a service that the store does not know gets
// its id back, and its backends stay until the sources have told of them.
func (m *Manager) adoptIDs(services []bpf.Service) {
	for _, s := range services {
		m.adopt[s.Frontend] = s.ID
		m.nextID = max(m.nextID, s.ID+1)
		if (s.Network != 0 || s.Published) && len(s.Slots) > 0 {
			m.found[s.Frontend] = s.Slots
		}
	}
}

// newID gives a service with this frontend the id it had in the maps, or one never used.
func (m *Manager) newID(f bpf.Frontend) uint32 {
	id, ok := m.adopt[f]
	delete(m.adopt, f)
	if _, used := m.ids[id]; !ok || used || id == 0 {
		id = m.nextID
		m.nextID++
	}
	m.ids[id] = struct{}{}
	return id
}

// useID claims an id that the store knows.
func (m *Manager) useID(id uint32) {
	m.ids[id] = struct{}{}
	m.nextID = max(m.nextID, id+1)
}

// Sync says that every source has told everything it knows: what the maps hold beyond that is removed.
// Before the first Sync nothing that was found in the maps is. An error of the maps is retried like
// any other, see [Manager.Err].
func (m *Manager) Sync() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.synced = true
	m.found = nil
	m.adopt = map[bpf.Frontend]uint32{}
	return m.reconcile()
}

// Reconcile reads the maps anew and makes every entry agree with what is wanted, also where somebody
// else changed it. A caller's ticker calls it while [Manager.Err] tells of an error.
func (m *Manager) Reconcile() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.observe(); err != nil {
		m.err = err
		return err
	}
	return m.reconcile()
}

func (m *Manager) reconcile() error {
	m.markAll()
	return m.finish(m.commit(0, nil))
}

// Err is the error of the last write to the store or the maps, nil once a later one has made it good.
func (m *Manager) Err() error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.err
}

// Writes counts how often facts have changed and the maps were made to agree.
type Writes struct{ All, Failed uint64 }

// Writes counts since the start.
func (m *Manager) Writes() Writes {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.writes
}

// Changed returns a channel that is closed at the next change of any fact.
func (m *Manager) Changed() <-chan struct{} {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.changed
}

// finish ends a change: it writes what the change marked, tells who waits, and keeps the error of
// the store (saved) or the maps.
func (m *Manager) finish(saved error) error {
	m.err = errors.Join(saved, m.flush())
	m.writes.All++
	if m.err != nil {
		m.writes.Failed++
	}
	close(m.changed)
	m.changed = make(chan struct{})
	return m.err
}
