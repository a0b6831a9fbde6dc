// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/driver"
	"github.com/mustang-net/mustang/driver/link"
	"github.com/mustang-net/mustang/ipam"
	"github.com/mustang-net/mustang/service"
	"github.com/mustang-net/mustang/state"
)

var ctx = context.Background()

// world is a host in memory, whose state and addresses are real.
type world struct {
	*Manager
	t        *testing.T
	store    state.Store
	pools    *ipam.IPAM
	declared map[string]bool
	labels   map[string]string
	boot     string

	mu         sync.Mutex
	networks   map[string]driver.NetworkConfig
	endpoints  map[string]driver.Endpoint
	sandboxes  map[string]uint64          // path → cookie
	devices    map[string]map[string]bool // path → names inside
	containers map[string]service.Container
	gone       map[string]bool
	orphaned   bool
	routes     []netip.Prefix // of the host
	down       bool           // devices inside of sandboxes
	calls      int
	failAt     int // the call that fails, and those after it until it is 0
	deaths     int // calls of the plugin's under which the daemon ends
}

func newWorld(t *testing.T) *world {
	w := &world{
		t: t, store: state.Memory(), declared: map[string]bool{}, networks: map[string]driver.NetworkConfig{},
		endpoints: map[string]driver.Endpoint{}, sandboxes: map[string]uint64{}, devices: map[string]map[string]bool{},
		containers: map[string]service.Container{}, gone: map[string]bool{},
	}
	w.restart()
	return w
}

func (w *world) mustDelete(d Detachment) Detached {
	done, err := w.Delete(ctx, d)
	require.NoError(w.t, err)
	return done
}

func (w *world) mustCollect(network string, valid []Attachee) []Attachee {
	done, err := w.Collect(ctx, network, valid)
	require.NoError(w.t, err)
	return done.Swept
}

// open is [Plugin.Open].
func (w *world) open(context.Context) (Host, func() error, error) {
	return dyingHost{w.Manager, w}, func() error { return nil }, nil
}

// dyingHost does what it is asked for, and ends before it says so.
type dyingHost struct {
	Host
	w *world
}

func (d dyingHost) end(err error) error {
	if d.w.deaths == 0 {
		return err
	}
	d.w.deaths--
	return unanswered{}
}

func (d dyingHost) Add(ctx context.Context, a Attachment) (Attached, error) {
	done, err := d.Host.Add(ctx, a)
	return done, d.end(err)
}

func (d dyingHost) Delete(ctx context.Context, a Detachment) (Detached, error) {
	done, err := d.Host.Delete(ctx, a)
	if err = d.end(err); err != nil {
		done = Detached{}
	}
	return done, err
}

func (d dyingHost) CanAdd(ctx context.Context, n Network) error { return d.end(d.Host.CanAdd(ctx, n)) }

func (d dyingHost) Collect(ctx context.Context, network string, valid []Attachee) (Collected, error) {
	done, err := d.Host.Collect(ctx, network, valid)
	if err = d.end(err); err != nil {
		done = Collected{}
	}
	return done, err
}

// unanswered is what a client of the daemon says that has ended.
type unanswered struct{}

func (unanswered) Error() string { return "ask the daemon: EOF" }
func (unanswered) Unanswered()   {}

// restart is what a new process finds.
func (w *world) restart() {
	var err error
	w.pools, err = ipam.New(w.store, ipam.Options{
		BootID: w.boot, Quarantine: -1, HostRoutes: func() ([]netip.Prefix, error) { return w.routes, nil },
	})
	require.NoError(w.t, err)
	log, _ := test.NewNullLogger()
	w.Manager, err = New(Options{
		Store: w.store, Driver: fakeDriver{w}, Pools: w.pools, Links: fakeLinks{w}, Containers: fakeContainers{w}, BootID: w.boot, Log: log,
		Shaper:   func(string) (*Shaper, error) { return nil, nil },
		Declared: func(name string) bool { return w.declared[name] },
		Labels:   func(context.Context, string) (map[string]string, error) { return maps.Clone(w.labels), nil },
	})
	require.NoError(w.t, err)
	w.containers = map[string]service.Container{}
	w.Restore()
}

var errFault = errors.New("fault")

func (w *world) hit() error {
	w.calls++
	if w.failAt > 0 && w.calls == w.failAt {
		return errFault
	}
	return nil
}

// sandbox makes a network namespace.
func (w *world) sandbox(path string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sandboxes[path] = uint64(len(w.sandboxes)+1) + 1000*uint64(w.calls)
	w.devices[path] = map[string]bool{"lo": true}
	return path
}

// end removes one, and with it what is in it.
func (w *world) end(path string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.sandboxes, path)
	delete(w.devices, path)
}

// lines are all that there is of attachments.
func (w *world) lines() (out []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id := range w.networks {
		out = append(out, "network "+id[:6])
	}
	for _, e := range w.endpoints {
		out = append(out, fmt.Sprintf("endpoint %s %v %v", e.ID[:6], e.IPv4, e.Published))
	}
	for path, names := range w.devices {
		for name := range names {
			out = append(out, "device "+path+" "+name)
		}
	}
	for _, p := range w.pools.Pools() {
		for _, l := range w.pools.Leases(p.ID) {
			out = append(out, "lease "+l.Address.String()+" "+l.Owner)
		}
	}
	for id, c := range w.containers {
		out = append(out, fmt.Sprintf("container %s %v", id, len(c.Aliases)))
	}
	err := w.store.View(func(tx state.Tx) error {
		for _, bucket := range []string{bucketNetworks, bucketAttachments} {
			err := tx.Each(bucket, func(key string, _ func(any) error) error {
				out = append(out, bucket+" "+key)
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	require.NoError(w.t, err)
	slices.Sort(out)
	return out
}

type fakeDriver struct{ w *world }

func (d fakeDriver) CreateNetwork(_ context.Context, c driver.NetworkConfig) error {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	if _, err := driver.ParseOptions(c.Options); err != nil {
		return err
	}
	if err := d.w.hit(); err != nil {
		return err
	}
	d.w.networks[c.ID] = c
	return nil
}

func (d fakeDriver) DeleteNetwork(_ context.Context, id string) error {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	delete(d.w.networks, id)
	return nil
}

func (d fakeDriver) CreateEndpoint(_ context.Context, c driver.EndpointConfig) (driver.Endpoint, error) {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	if err := d.w.hit(); err != nil {
		return driver.Endpoint{}, err
	}
	if _, ok := d.w.networks[c.NetworkID]; !ok {
		return driver.Endpoint{}, driver.ErrNotFound
	}
	e := driver.Endpoint{ID: c.ID, NetworkID: c.NetworkID, IPv4: c.IPv4, IPv6: c.IPv6, HostIf: "mst" + c.ID[:5], PeerIf: "msp" + c.ID[:5], Index: 7}
	d.w.endpoints[c.ID] = e
	return e, nil
}

func (d fakeDriver) Endpoint(_ context.Context, _, id string) (driver.Endpoint, error) {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	if e, ok := d.w.endpoints[id]; ok {
		return e, nil
	}
	return driver.Endpoint{}, driver.ErrNotFound
}

// DeleteEndpoint takes the other end from the sandbox, as a pair does.
func (d fakeDriver) DeleteEndpoint(_ context.Context, _, id string) error {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	if e, ok := d.w.endpoints[id]; ok && e.IfName != "" {
		delete(d.w.devices[e.Sandbox], e.IfName)
	}
	delete(d.w.endpoints, id)
	return nil
}

func (d fakeDriver) Join(_ context.Context, _, id, sandbox string) (driver.Join, error) {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	if err := d.w.hit(); err != nil {
		return driver.Join{}, err
	}
	return driver.Join{SrcName: d.w.endpoints[id].PeerIf, Gateway: netip.MustParseAddr("10.201.0.1")}, nil
}

func (d fakeDriver) Publish(_ context.Context, _, id string, ports []driver.PortBinding) error {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	if err := d.w.hit(); err != nil {
		return err
	}
	e := d.w.endpoints[id]
	for _, p := range ports {
		e.Published = append(e.Published, driver.Published{Port: p.Port})
	}
	d.w.endpoints[id] = e
	return nil
}

func (d fakeDriver) Unpublish(_ context.Context, _, id string) error {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	if e, ok := d.w.endpoints[id]; ok {
		e.Published = nil
		d.w.endpoints[id] = e
	}
	return nil
}

func (d fakeDriver) Orphaned() bool { return d.w.orphaned }

type fakeLinks struct{ w *world }

func (l fakeLinks) Cookie(path string) (uint64, error) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	if cookie, ok := l.w.sandboxes[path]; ok {
		return cookie, nil
	}
	return 0, link.ErrNoNetns
}

func (l fakeLinks) MoveInto(name, path, as string) error {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	if err := l.w.hit(); err != nil {
		return err
	}
	if l.w.devices[path][as] {
		return link.ErrDeviceExists
	}
	for id, e := range l.w.endpoints {
		if e.PeerIf == name {
			e.Sandbox, e.IfName = path, as
			l.w.endpoints[id] = e
		}
	}
	l.w.devices[path][as] = true
	return nil
}

func (l fakeLinks) SetUpInside(string, link.Inner) error {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	return l.w.hit()
}

func (l fakeLinks) FindInside(path, name string) (link.Inside, error) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	if err := l.w.hit(); err != nil {
		return link.Inside{}, err
	}
	if !l.w.devices[path][name] {
		return link.Inside{}, link.ErrNoDevice
	}
	in := link.Inside{Up: !l.w.down, Device: link.Device{Name: name, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}, Peer: 7}
	for _, e := range l.w.endpoints {
		if e.Sandbox == path && e.IfName == name {
			in.Addrs = []netip.Prefix{e.IPv4}
		}
	}
	return in, nil
}

func (l fakeLinks) RemoveInside(string, string) error { return nil }

func (l fakeLinks) Limit(string, string, link.Rate) error {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	return l.w.hit()
}

func (l fakeLinks) RoutesInside(string) ([]netip.Prefix, error) {
	return []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}, nil
}

type fakeContainers struct{ w *world }

func (c fakeContainers) PutContainer(s service.Container) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	c.w.containers[s.ID] = s
}

func (c fakeContainers) RemoveContainer(id string) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	delete(c.w.containers, id)
}

func (c fakeContainers) Gone(id string) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	c.w.gone[id] = true
}

func (fakeContainers) List() []service.View { return nil }
