// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/sirupsen/logrus"

	"github.com/mustang-net/mustang/driver"
	"github.com/mustang-net/mustang/driver/link"
	"github.com/mustang-net/mustang/ipam"
	"github.com/mustang-net/mustang/service"
	"github.com/mustang-net/mustang/state"
)

// Driver makes networks and endpoints; [driver.Manager] is the real one.
type Driver interface {
	CreateNetwork(ctx context.Context, c driver.NetworkConfig) error
	DeleteNetwork(ctx context.Context, id string) error
	CreateEndpoint(ctx context.Context, c driver.EndpointConfig) (driver.Endpoint, error)
	Endpoint(ctx context.Context, networkID, id string) (driver.Endpoint, error)
	DeleteEndpoint(ctx context.Context, networkID, id string) error
	Join(ctx context.Context, networkID, id, sandbox string) (driver.Join, error)
	Publish(ctx context.Context, networkID, id string, ports []driver.PortBinding) error
	Unpublish(ctx context.Context, networkID, id string) error
	// Orphaned tells whether endpoints go on that the state does not know, because it was lost.
	Orphaned() bool
}

// Pools hands out subnets and addresses; [ipam.IPAM] is the real one.
type Pools interface {
	RequestPool(ipam.Request) (ipam.Pool, error)
	ReleasePool(id string) error
	Pools() []ipam.Pool
	RequestAddress(poolID string, addr netip.Addr, opts ipam.AddressOptions) (netip.Prefix, error)
	ReleaseOwner(poolID, owner string) error
	Leases(poolID string) []ipam.Lease
}

// Links is what is asked of sandboxes; [link.Host] is the real one.
type Links interface {
	Cookie(path string) (uint64, error)
	MoveInto(name, path, as string) error
	SetUpInside(path string, in link.Inner) error
	FindInside(path, name string) (link.Inside, error)
	RemoveInside(path, owner string) error
	RoutesInside(path string) ([]netip.Prefix, error)
	Limit(path, name string, r link.Rate) error
}

// Containers is told which endpoints are a container's; [service.Manager] is the real one.
type Containers interface {
	PutContainer(service.Container)
	RemoveContainer(id string)
	Gone(endpointID string)
	List() []service.View
}

// Options is what a [Manager] works with; all of it is needed.
type Options struct {
	Store      state.Store
	Driver     Driver
	Pools      Pools
	Links      Links
	Containers Containers
	// Labels returns what is written on a container, as far as its runtime tells.
	Labels func(ctx context.Context, container string) (map[string]string, error)
	// Declared tells whether a configuration on the host names a network: one that none names goes with its last
	// container.
	Declared func(name string) bool
	// Shaper is the plugin bandwidth of a network's file; nil if it has none.
	Shaper func(name string) (*Shaper, error)
	// Swept says that Sweep is called now and then: Add does so only for want of an address.
	Swept  bool
	VIPs   []netip.Prefix // the pools of them
	BootID string         // tells this boot of the host from others, in which cookies of namespaces may be the same
	Log    logrus.FieldLogger
}

// Manager keeps the attachments of one host. Its methods may be called at the same time.
type Manager struct {
	Options

	mu       sync.Mutex // guards what follows, held for a moment only
	networks map[string]*network
	attached map[Key]*attachment
	busy     map[Key]*work

	making    sync.Mutex        // held while a network is made or removed
	writing   sync.Mutex        // held while /etc/hosts of containers are written
	unwritten map[string]string // why some could not be; writing guards it
}

// work is what goes on with one attachment.
type work struct {
	sync.Mutex
	users int
}

// New reads the state.
func New(o Options) (*Manager, error) {
	m := &Manager{Options: o, networks: map[string]*network{}, attached: map[Key]*attachment{}, busy: map[Key]*work{}, unwritten: map[string]string{}}
	if err := o.Store.View(m.load); err != nil {
		return nil, fmt.Errorf("read the attachments: %w", err)
	}
	return m, nil
}

// Restore tells the services of what was attached before a start.
func (m *Manager) Restore() {
	m.mu.Lock()
	containers := map[string]bool{}
	for k := range m.attached {
		containers[k.Container] = true
	}
	m.mu.Unlock()
	for id := range containers {
		m.tellContainer(id)
	}
}

// lock keeps others from working on the attachment, until the function that it returns is called.
func (m *Manager) lock(k Key) (unlock func()) {
	m.mu.Lock()
	w := m.busy[k]
	if w == nil {
		w = &work{}
		m.busy[k] = w
	}
	w.users++
	m.mu.Unlock()
	w.Lock()
	return func() {
		w.Unlock()
		m.mu.Lock()
		defer m.mu.Unlock()
		if w.users--; w.users == 0 {
			delete(m.busy, k)
		}
	}
}

// Add implements [Host].
func (m *Manager) Add(ctx context.Context, a Attachment) (Attached, error) {
	if err := a.Of.checkPublish(len(a.Ports)); err != nil {
		return Attached{}, err
	}
	unlock := m.lock(a.Key)
	defer unlock()
	if !m.Swept {
		m.sweep(ctx, func(k Key) bool { return k.Network == a.Network && k != a.Key })
	}
	cookie, err := m.Links.Cookie(a.Sandbox)
	if err != nil {
		return Attached{}, err
	}
	if had := m.get(a.Key); had != nil {
		if !had.Leaving && m.alive(had) {
			return Attached{}, conflictf("add %s of container %s to the network %s: it is there already", a.IfName, a.Container, a.Network)
		}
		if err := m.remove(ctx, a.Key); err != nil {
			return Attached{}, err
		}
	}
	n, err := m.ensure(ctx, a.Of, a.Given)
	if err != nil {
		return Attached{}, err
	}
	defer n.release(m)
	record := &attachment{
		Key: a.Key, Sandbox: a.Sandbox, Cookie: cookie, BootID: m.BootID, Aliases: a.Aliases, Labels: m.labels(ctx, a.Container),
	}
	if err := m.put(record); err != nil {
		return Attached{}, err
	}
	out, err := m.attach(ctx, n, a)
	if err != nil {
		// past a deadline of the caller's, too: nobody asks again
		return Attached{}, errors.Join(err, m.remove(context.WithoutCancel(ctx), a.Key))
	}
	m.writeHosts(a.Network)
	return out, nil
}

// attach does the steps of Add, each of which remove undoes.
func (m *Manager) attach(ctx context.Context, n *network, a Attachment) (out Attached, err error) {
	id := a.endpoint()
	c := driver.EndpointConfig{
		ID: id, NetworkID: n.id(), Source: driver.SourceCNI, MAC: a.MAC, Into: a.Sandbox,
		Options: map[string]string{"com.docker.network.endpoint.ifname": a.IfName},
	}
	limits, shaped, err := m.limits(a)
	if err != nil {
		return out, err
	}
	c.Shaped = shaped
	if out.IPs, err = m.addresses(ctx, n, a); err != nil {
		return out, err
	}
	for _, ip := range out.IPs {
		if ip.Address.Addr().Is4() {
			c.IPv4 = ip.Address
		} else {
			c.IPv6 = ip.Address
		}
	}
	// first, so that the endpoint is a backend as soon as it is one of the network's
	m.tellContainer(a.Container)
	ep, err := m.Driver.CreateEndpoint(ctx, c)
	if err == nil && !ep.Inside { // before it joins: programs that wait for a slave in its sandbox find it there
		err = m.Links.MoveInto(ep.PeerIf, a.Sandbox, a.IfName)
	}
	if errors.Is(err, link.ErrDeviceExists) {
		err = conflict{err}
	}
	if err != nil {
		return out, err
	}
	j, err := m.Driver.Join(ctx, c.NetworkID, id, a.Sandbox)
	if err != nil {
		return out, err
	}
	in := link.Inner{Name: a.IfName, Routes: j.Routes, Gateway: j.Gateway, Gateway6: j.Gateway6}
	for _, ip := range out.IPs {
		in.Addrs = append(in.Addrs, ip.Address)
	}
	for _, r := range a.Hops {
		if r.To.Bits() > 0 { // what leads out is the network's to say
			j.Hops = append(j.Hops, driver.Hop(r))
		}
	}
	for _, h := range j.Hops {
		in.Hops = append(in.Hops, link.Hop(h))
	}
	// Networks of one container, which runtimes ask for at once, come one after another from here: whose default route stands publishes its ports,
	// or its answers to datagrams would leave with another address than was asked.
	unlock := m.lock(Key{Attachee: Attachee{Container: a.Container}})
	defer unlock()
	if err := m.Links.SetUpInside(a.Sandbox, in); err != nil {
		return out, err
	}
	if err := m.limit(a, limits, ep.HostIf); err != nil {
		return out, err
	}
	if err := m.Driver.Publish(ctx, c.NetworkID, id, a.Ports); err != nil {
		return out, err
	}
	inside, err := m.Links.FindInside(a.Sandbox, a.IfName)
	if err != nil {
		return out, err
	}
	out.HostIf, out.HostMAC, out.MAC = ep.HostIf, ep.HostMAC, inside.MAC.String()
	out.Routes = routesOf(j)
	return out, nil
}

// routesOf are the routes of a sandbox for the runtime to see.
func routesOf(j driver.Join) (out []RouteTo) {
	if j.Gateway.IsValid() {
		out = append(out, RouteTo{netip.PrefixFrom(netip.IPv4Unspecified(), 0), j.Gateway})
	}
	if j.Gateway6.IsValid() {
		out = append(out, RouteTo{netip.PrefixFrom(netip.IPv6Unspecified(), 0), j.Gateway6})
	}
	for _, p := range j.Routes {
		out = append(out, RouteTo{To: p})
	}
	for _, h := range j.Hops {
		out = append(out, RouteTo(h))
	}
	return out
}

// Delete implements [Host].
func (m *Manager) Delete(ctx context.Context, d Detachment) (Detached, error) {
	unlock := m.lock(d.Key)
	defer unlock()
	had := m.get(d.Key)
	if d.Sandbox == "" && had != nil && !had.Swept && m.alive(had) {
		return Detached{Stays: true}, m.letGo(ctx, had)
	}
	var err error
	switch {
	case had != nil || !m.Driver.Orphaned():
		err = m.remove(ctx, d.Key)
	case d.Sandbox != "": // the state is lost that knew it, and the sandbox tells; without one its device goes when it has ended
		err = errors.Join(m.Links.RemoveInside(d.Sandbox, d.endpoint()), m.remove(ctx, d.Key))
	}
	if !m.Swept {
		m.sweep(ctx, func(k Key) bool { return k != d.Key })
	}
	return Detached{}, errors.Join(err, m.removeIdle(ctx, d.Network))
}

// letGo takes a container that still runs out of its services. Its device goes when it has ended.
func (m *Manager) letGo(ctx context.Context, a *attachment) error {
	id := a.endpoint()
	m.Containers.Gone(id)
	if err := m.Driver.Unpublish(ctx, NetworkID(a.Network), id); err != nil {
		return err
	}
	if a.Leaving {
		return nil
	}
	leaving := *a
	leaving.Leaving = true
	return m.put(&leaving)
}

// remove undoes Add, whichever of its steps were done.
func (m *Manager) remove(ctx context.Context, k Key) error {
	if err := m.detach(ctx, k); err != nil {
		return err
	}
	return m.forget(k)
}

// detach is remove but for the record.
func (m *Manager) detach(ctx context.Context, k Key) error {
	id := k.endpoint()
	if a := m.get(k); a != nil && m.alive(a) {
		if err := m.Links.RemoveInside(a.Sandbox, id); err != nil {
			return err
		}
	}
	if err := m.Driver.DeleteEndpoint(ctx, NetworkID(k.Network), id); err != nil {
		return err
	}
	for _, p := range m.poolsOf(k.Network) {
		if err := m.Pools.ReleaseOwner(p.ID, k.String()); err != nil {
			return err
		}
	}
	return nil
}

// alive tells whether the attachment's sandbox exists, or may do.
func (m *Manager) alive(a *attachment) bool {
	if a.BootID != m.BootID {
		return false
	}
	cookie, err := m.Links.Cookie(a.Sandbox)
	if err != nil {
		return !errors.Is(err, link.ErrNoNetns)
	}
	return cookie == a.Cookie
}

// Sweep removes what containers have left that ended without a word.
func (m *Manager) Sweep(ctx context.Context) {
	m.sweep(ctx, func(Key) bool { return true })
	m.writeHosts("")
	for _, name := range m.networkNames() {
		if err := m.removeIdle(ctx, name); err != nil {
			m.Log.WithError(err).WithField("network", name).Warn("remove a network that no configuration names")
		}
	}
}

// sweep removes the attachments, of those that are meant, whose sandbox is gone and that nobody works on.
func (m *Manager) sweep(ctx context.Context, meant func(Key) bool) {
	m.mu.Lock()
	var idle []*attachment
	for k, a := range m.attached {
		if m.busy[k] == nil && !a.Swept && meant(k) {
			idle = append(idle, a)
		}
	}
	m.mu.Unlock()
	for _, a := range idle {
		if m.alive(a) {
			continue
		}
		if err := m.sweepOne(ctx, a.Key); err != nil {
			m.Log.WithError(err).WithField("container", a.Container).Warn("remove what a container has left")
		}
	}
}

func (m *Manager) sweepOne(ctx context.Context, k Key) error {
	unlock := m.lock(k)
	defer unlock()
	a := m.get(k)
	if a == nil || a.Swept || m.alive(a) {
		return nil // another was faster, or it has come back
	}
	return m.sweepAway(ctx, a)
}

// sweepAway removes an attachment. Of a delegated network's the record stays: its address is another plugin's, which DEL or GC asks to take it
// back. The caller has its lock.
func (m *Manager) sweepAway(ctx context.Context, a *attachment) error {
	m.mu.Lock()
	n := m.networks[a.Network]
	m.mu.Unlock()
	if n == nil || !n.Delegated {
		return m.remove(ctx, a.Key)
	}
	if err := m.detach(ctx, a.Key); err != nil {
		return err
	}
	swept := *a
	swept.Leaving, swept.Swept = true, true
	if err := m.put(&swept); err != nil {
		return err
	}
	m.tellContainer(a.Container)
	return nil
}

// Collect implements [Host].
func (m *Manager) Collect(ctx context.Context, name string, valid []Attachee) (done Collected, err error) {
	keep := map[string]bool{}
	for _, a := range valid {
		keep[a.String()] = true
	}
	var errs []error
	for _, k := range m.keysOf(name) {
		if !keep[k.String()] {
			unlock := m.lock(k)
			if a := m.get(k); a != nil {
				errs = append(errs, m.sweepAway(ctx, a))
			}
			unlock()
		}
	}
	for _, k := range m.sweptOf(name) {
		if !keep[k.String()] {
			done.Swept = append(done.Swept, k.Attachee)
		}
	}
	for _, p := range m.poolsOf(name) {
		for _, l := range m.Pools.Leases(p.ID) {
			if !l.Gateway && !keep[l.Owner] {
				errs = append(errs, m.Pools.ReleaseOwner(p.ID, l.Owner))
			}
		}
	}
	return done, errors.Join(errs...)
}
