// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/sirupsen/logrus"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/driver/link"
	"github.com/mustang-net/mustang/service"
	"github.com/mustang-net/mustang/state"
)

// Links is what the driver asks of the kernel's devices and namespaces; [link.Host] is the real one.
type Links interface {
	CheckPair(typ string) error
	CreatePair(link.Pair) (link.Device, error)
	CreateBridge(link.Bridge) (link.Device, error)
	Plug(port, bridge string, addrs []netip.Addr, mac net.HardwareAddr) error
	Unplug(bridge string, addrs []netip.Addr) error
	CreatePrivateParent(owner, name, peer string, mtu int) error
	CreateVLAN(name, owner string) (bool, error)
	CheckParent(name string, mtu int) error
	Addrs(name string) ([]netip.Prefix, error)
	HasAddr(netip.Addr) (bool, error)
	CreateSlave(link.Slave) (link.Device, error)
	CreateHostSlave(link.Slave, []netip.Prefix) (link.Device, error)
	Reach(name string, addrs, sources []netip.Addr, mac net.HardwareAddr) error
	Disconnect(name string, addrs []netip.Addr) error
	Delete(name, owner string) error
	Owned() (map[string]string, error)
	Connect(name string, addrs, gateways []netip.Addr, mac net.HardwareAddr) error
	Refuse(netip.Prefix) error
	Unrefuse(netip.Prefix) error
	Refused() ([]netip.Prefix, error)
	UplinkMTU() int
	Uplinks(names []string) (uplinks []link.Uplink, unfit []string, err error)
	HostAddrs() ([]netip.Addr, error)
	Route(name string) error
	OnLink() ([]netip.Prefix, error)
	AttachClsact(name string, ingress, egress link.Filter) error
	DetachClsact(name string) error
	HasClsact(name string) bool
	Forward(name string, ipv6 bool) error
	CanForward6() error
	RefuseInside(path string, p netip.Prefix) error
	UnrefuseInside(path string, p netip.Prefix) error
	Namespaces
}

// Namespaces is what the driver asks of sandboxes.
type Namespaces interface {
	Cookie(path string) (uint64, error)
	Listens(path string) (bool, error)
	FindInside(path, name string) (link.Inside, error)
	Name(index int) (string, error)
	Do(path string, fn func() error) error
	OwnInside(path, owner string) (link.Device, error)
	InSandboxes() (map[string]link.InSandbox, error)
	Find(name string) (link.Device, error)
}

// Datapath is what the driver writes to the eBPF maps and hooks; [bpf.Datapath] is the real one.
type Datapath interface {
	PutEndpoint(bpf.Endpoint) error
	DeleteEndpoint(netip.Addr) error
	DeleteHostAddr(netip.Addr) error
	PutUplink(bpf.Uplink) error
	DeleteUplink(ifindex int) error
	Uplinks() ([]bpf.Uplink, error)
	Endpoints() ([]bpf.Endpoint, error)
	PutInterface(bpf.Interface) error
	DeleteInterface(ifindex int) error
	Interfaces() ([]int, error)
	PutSandbox(bpf.Sandbox) error
	PutMember(cookie uint64, network uint32) error
	DeleteMember(cookie uint64, network uint32) error
	Sandboxes() (map[uint64][]uint32, error)
	Sandbox(cookie uint64) (bpf.Sandbox, bool, error)
	Load() error
	AttachLXC(ifname string, ifindex int, end bpf.End) error
	RenameLXC(from, to string) error
	DetachLXC(ifname string) error
	AttachedLXC() ([]string, error)
	ProgramFD(name string) int
}

// Services is told of networks and endpoints; [service.Manager] is the real one.
type Services interface {
	AddNetwork(service.Network) ([]netip.Prefix, error)
	RemoveNetwork(id string) error
	PutEndpoint(service.Endpoint) error
	RemoveEndpoint(id string) error
	Gone(endpointID string)
	Unpublish(endpointID string) error
	// Label is what people call an endpoint.
	Label(endpointID string) string
	// Known tells whether it is known whose an endpoint is.
	Known(endpointID string) bool
	// Joining tells whether an endpoint's container, which is being started, is expected on a network, by its id.
	Joining(endpointID, networkID string) bool
}

// Resolver answers names inside sandboxes; nil if no daemon runs to answer.
type Resolver interface {
	// Add starts answering in the sandbox and returns the port it listens on there.
	Add(cookie uint64, path string) (port uint16, err error)
	Remove(cookie uint64)
}

// Manager creates and removes networks and endpoints. Its methods are idempotent and may be called at
// the same time.
type Manager struct {
	store    state.Store
	links    Links
	datapath Datapath
	services Services
	tables   Tables
	resolver Resolver
	ports    Ports
	pools    []netip.Prefix // service pools, unreachable but for VIPs
	log      logrus.FieldLogger

	uplinkNames []string // none: those that link.Host.Uplinks finds by itself
	introduce   func(ctx context.Context, networkID string)

	syncing   sync.Mutex // one look at the host's devices is put to use before the next
	mu        sync.Mutex // guards what follows and orders changes
	networks  map[string]*Network
	endpoints map[string]*Endpoint
	waiting   map[waiting]context.CancelFunc
	noTCX     bool // the kernel has none, as an attempt showed
	waits     sync.WaitGroup
	uplinks   map[string]bpf.Uplink // by name
	unfit     []string              // what would be one, and why it is not, as it was told
	hostAddrs map[netip.Addr]bool   // the host's own, as the datapath knows them
	lans      map[string]lan        // of networks whose host's slaves are on LANs, as these know them
	missing   map[string]bool       // networks and endpoints that the engine did not know at the last Collect
	fresh     bool                  // the state has never been used
	orphaned  bool                  // it was lost, and endpoints that it does not know go on
	rehearses bool                  // nothing is to be done, nor waited for
}

// Config is what a Manager works with.
type Config struct {
	Store    state.Store
	Links    Links
	Datapath Datapath
	Services Services
	Tables   Tables
	Resolver Resolver
	Ports    Ports          // nil if no daemon runs to hold them
	Uplinks  []string       // devices that lead out; none: those that [link.Host.Uplinks] finds by itself
	Pools    []netip.Prefix // service pools: made unreachable on the host, but for what the hooks translate
	Log      logrus.FieldLogger
	// Introduce has services told whose the endpoints of a network are, as far as anybody knows; nil if nobody does. It
	// may ask an engine that waits for us, and so returns soon.
	Introduce func(ctx context.Context, networkID string)
}

// The state's buckets.
const (
	bucketNetworks  = "driver.networks"
	bucketEndpoints = "driver.endpoints"
	bucketCounter   = "driver.counter"
)

// ErrNotFound says that a network or endpoint is not ours, or not any more.
var ErrNotFound = errors.New("not found")

// New reads the state. The kernel is not touched until [Manager.Restore].
func New(cfg Config) (*Manager, error) {
	m := &Manager{
		store: cfg.Store, links: cfg.Links, datapath: cfg.Datapath, services: cfg.Services,
		tables: cfg.Tables, resolver: cfg.Resolver, ports: cfg.Ports, pools: cfg.Pools, log: cfg.Log,
		uplinkNames: cfg.Uplinks, introduce: cfg.Introduce, uplinks: map[string]bpf.Uplink{}, hostAddrs: map[netip.Addr]bool{},
		networks: map[string]*Network{}, endpoints: map[string]*Endpoint{}, waiting: map[waiting]context.CancelFunc{},
	}
	err := m.store.View(func(tx state.Tx) error {
		err := tx.Each(bucketNetworks, func(key string, decode func(any) error) error {
			n := &Network{}
			m.networks[key] = n
			return decode(n)
		})
		if err != nil {
			return err
		}
		err = tx.Each(bucketEndpoints, func(key string, decode func(any) error) error {
			e := &Endpoint{}
			m.endpoints[key] = e
			return decode(e)
		})
		if err != nil {
			return err
		}
		return m.loadOrphaned(tx)
	})
	if err != nil {
		return nil, fmt.Errorf("read the networks and endpoints: %w", err)
	}
	return m, nil
}

// Close stops waiting for sandboxes. The datapath goes on.
func (m *Manager) Close() {
	m.mu.Lock()
	for _, cancel := range m.waiting {
		cancel()
	}
	m.mu.Unlock()
	m.waits.Wait()
}

func (m *Manager) put(bucket, key string, v any) error {
	return m.store.Update(func(tx state.Tx) error { return tx.Put(bucket, key, v) })
}

func (m *Manager) remove(bucket, key string) error {
	return m.store.Update(func(tx state.Tx) error { return tx.Delete(bucket, key) })
}
