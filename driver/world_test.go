// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/driver/ports"
	"github.com/mustang-net/mustang/nft"
	"github.com/mustang-net/mustang/service"
	"github.com/mustang-net/mustang/state"
)

// services keeps networks like the real one's store, and forgets endpoints at a restart.
type services struct {
	fault     *fault
	mu        sync.Mutex
	networks  map[string]service.Network
	endpoints map[string]service.Endpoint
	gone      map[string]bool
	known     map[string]bool     // whose containers services know
	on        map[string][]string // networks of an endpoint's container that starts
	refuses   string              // id of an endpoint whose address is a VIP
	onGone    func()              // is called once, when Gone returns
}

func (s *services) AddNetwork(n service.Network) ([]netip.Prefix, error) {
	if err := s.fault.hit("add network"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.networks[n.ID] = n
	var out []netip.Prefix
	if n.VIP && n.IPv4 {
		out = append(out, netip.MustParsePrefix(fmt.Sprintf("10.96.%d.0/24", n.Number)))
	}
	if n.VIP && n.IPv6 {
		out = append(out, netip.MustParsePrefix(fmt.Sprintf("fd6d:7374:10::%d:0/112", n.Number)))
	}
	return out, nil
}

func (s *services) RemoveNetwork(id string) error {
	if err := s.fault.hit("remove network"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.networks, id)
	return nil
}

func (s *services) PutEndpoint(e service.Endpoint) error {
	if err := s.fault.hit("tell of an endpoint"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.ID == s.refuses {
		return errors.New("its address is a VIP")
	}
	s.endpoints[e.ID] = e
	delete(s.gone, e.ID)
	return nil
}

func (s *services) RemoveEndpoint(id string) error {
	if err := s.fault.hit("remove an endpoint"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.endpoints, id)
	delete(s.gone, id)
	return nil
}

func (s *services) Unpublish(id string) error {
	if err := s.fault.hit("unpublish"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.endpoints[id]; ok {
		e.Ports = nil
		s.endpoints[id] = e
	}
	return nil
}

func (s *services) Label(id string) string { return "the endpoint " + id }

// Known is what nobody has told of endpoints, unless a test has.
func (s *services) Known(id string) bool { return s.known[id] }

func (s *services) Joining(id, network string) bool { return slices.Contains(s.on[id], network) }

func (s *services) Gone(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.endpoints[id]; ok {
		s.gone[id] = true
	}
	if then := s.onGone; then != nil {
		s.onGone = nil
		s.mu.Unlock()
		defer s.mu.Lock()
		then()
	}
}

// resolver is a daemon's listeners; they end with it.
type resolver struct {
	fault *fault
	mu    sync.Mutex
	at    map[uint64]string
}

func (r *resolver) Add(cookie uint64, path string) (uint16, error) {
	if err := r.fault.hit("resolver"); err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at[cookie] = path
	return 5353, nil
}

func (r *resolver) Remove(cookie uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.at, cookie)
}

// world is a host with a daemon that can be ended and started again.
type world struct {
	t        *testing.T
	fault    *fault
	kernel   *kernel
	datapath *datapath
	services *services
	tables   *tables
	resolver *resolver
	ports    *holder
	store    state.Store
	log      *test.Hook
	setting  setting
	*Manager
}

func newWorld(t *testing.T) *world {
	f := &fault{}
	k := newKernel(f)
	w := &world{
		t: t, fault: f, kernel: k, datapath: newDatapath(f, k), store: state.Memory(),
		services: &services{fault: f, networks: map[string]service.Network{}},
		tables:   &tables{fault: f, kernel: k, sandboxes: map[string]nft.Sandbox{}},
	}
	w.restart()
	t.Cleanup(func() { w.Close() })
	return w
}

// restart ends the daemon, if one runs, and starts another.
func (w *world) restart() {
	w.t.Helper()
	w.startAgain()
	require.NoError(w.t, w.Restore())
}

// startAgain is restart without Restore.
func (w *world) startAgain() {
	w.t.Helper()
	if w.Manager != nil {
		w.Close()
	}
	w.services.endpoints, w.services.gone = map[string]service.Endpoint{}, map[string]bool{}
	w.ports = &holder{fault: w.fault, taken: map[ports.Port]string{}, held: map[ports.Port]netip.AddrPort{}, sources: map[ports.Port][]netip.Prefix{}}
	w.resolver = &resolver{fault: w.fault, at: map[uint64]string{}}
	log, hook := test.NewNullLogger()
	log.SetLevel(logrus.DebugLevel)
	w.log = hook
	m, err := New(Config{
		Store: faultyStore{w.store, w.fault}, Links: w.kernel, Datapath: w.datapath, Services: w.services,
		Tables: w.tables, Resolver: w.resolver, Ports: w.ports, Pools: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd6d:7374:10::/96")},
		Log: log,
	})
	require.NoError(w.t, err)
	w.Manager = m
}

// reboot leaves the state file alone.
func (w *world) reboot() {
	w.t.Helper()
	w.Close()
	w.kernel.boot()
	w.datapath.wipe()
	w.restart()
}

// lines tell all there is, by names that outlast a restart.
func (w *world) lines() []string {
	w.kernel.mu.Lock()
	defer w.kernel.mu.Unlock()
	w.datapath.mu.Lock()
	defer w.datapath.mu.Unlock()
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	ifs, paths, nets := map[int]string{0: "none"}, map[uint64]string{hostCookie: "host"}, map[uint32]string{0: "host"}
	for name, d := range w.kernel.devices {
		ifs[d.index] = name
		add("device %s of %q addresses %v gateways %v clsact %v", name, d.owner, d.addrs, d.gateways, d.clsact)
	}
	for path, n := range w.kernel.netns {
		paths[n.cookie] = path
		for p := range n.refused {
			add("refused in %s: %s", path, p)
		}
	}
	for id, n := range w.services.networks {
		nets[n.Number] = id
		add("services know the network %s", id)
	}
	for p := range w.kernel.refused {
		add("refused %s", p)
	}
	for a, e := range w.datapath.endpoints {
		if e.Host {
			continue // follows the kernel's, in its own time
		}
		add("endpoint %s at %s network %s redirect %v MAC %s", a, ifs[e.IfIndex], nets[e.Network], e.Redirect, e.MAC)
	}
	for i, e := range w.datapath.interfaces {
		add("interface %s network %s gateways %s %s", ifs[i], nets[e.Network], e.Gateway4, e.Gateway6)
	}
	for c, s := range w.datapath.sandboxes {
		add("sandbox %s sockets %v tracked %v dns %d", paths[c], s.SocketLB, s.Tracked, s.DNSPort)
	}
	for c, networks := range w.datapath.members {
		for n := range networks {
			add("member %s of %s", paths[c], nets[n])
		}
	}
	for name, index := range w.datapath.attached {
		add("programs of %s on %s", name, ifs[index])
	}
	for i, u := range w.datapath.uplinks {
		add("uplink %s as %s", ifs[i], u.SNAT4)
	}
	for p, via := range w.ports.held {
		add("port %s held via %s", p, via)
	}
	for id, e := range w.services.endpoints {
		for _, p := range e.Ports {
			for i := range p.Count {
				add("port %s/%s of %s leads to %d", netip.AddrPortFrom(p.Host.Addr(), p.Host.Port()+i), transport(p.Protocol), id, p.Port+i)
			}
		}
	}
	for _, e := range w.tables.ends {
		add("end %s kind %d of %s addresses %v", e.Name, e.Kind, nets[e.Network], e.Addrs)
	}
	for path, s := range w.tables.sandboxes {
		if n := w.kernel.netns[path]; n != nil && n.cookie == s.Cookie {
			var of []string
			for _, number := range s.Networks {
				of = append(of, nets[number])
			}
			add("tables in %s of %v dns %d", path, of, s.DNSPort)
		}
	}
	for id := range w.services.endpoints {
		add("services know the endpoint %s", id)
	}
	for c, path := range w.resolver.at {
		add("resolver in %s (%s)", paths[c], path)
	}
	for _, bucket := range []string{bucketNetworks, bucketEndpoints} {
		err := w.store.View(func(tx state.Tx) error {
			return tx.Each(bucket, func(key string, _ func(any) error) error {
				add("record %s %s", bucket, key)
				return nil
			})
		})
		require.NoError(w.t, err)
	}
	slices.Sort(out)
	return out
}

// The host that most tests are about.
const (
	net1 = "net1"
	net2 = "net2"
	box  = "/var/run/docker/netns/0123456789ab"
	ep1  = "e1e1e1e1e1e1e1e1"
	ep2  = "e2e2e2e2e2e2e2e2"
	if1  = "mste1e1e1e1e1e"
)

var ctx = context.Background()

func subnet(pool string) Subnet {
	p := netip.MustParsePrefix(pool)
	return Subnet{Pool: p, Gateway: netip.PrefixFrom(p.Addr().Next(), p.Bits())}
}

// network is a dual-stack network; the number is a byte of its subnets.
func network(id string, number int, opts map[string]string) NetworkConfig {
	return NetworkConfig{
		ID: id, Options: opts,
		IPv4: []Subnet{subnet(fmt.Sprintf("10.%d.0.0/24", number))},
		IPv6: []Subnet{subnet(fmt.Sprintf("fd00:%d::/64", number))},
	}
}

// endpoint is the host'th of a network made by network.
func endpoint(id, networkID string, number, host int) EndpointConfig {
	return EndpointConfig{
		ID: id, NetworkID: networkID,
		IPv4: netip.MustParsePrefix(fmt.Sprintf("10.%d.0.%d/24", number, host)),
		IPv6: netip.MustParsePrefix(fmt.Sprintf("fd00:%d::%x/64", number, host)),
	}
}

func (w *world) createNetwork(id string, number int) {
	w.t.Helper()
	require.NoError(w.t, w.CreateNetwork(ctx, network(id, number, nil)))
}

func (w *world) createEndpoint(id, networkID string, number, host int) Endpoint {
	w.t.Helper()
	e, err := w.CreateEndpoint(ctx, endpoint(id, networkID, number, host))
	require.NoError(w.t, err)
	return e
}

func (w *world) join(id, path string) Join {
	w.t.Helper()
	j, err := w.Join(ctx, "", id, path)
	require.NoError(w.t, err)
	return j
}

func (w *world) remove(id string) {
	w.t.Helper()
	require.NoError(w.t, w.Leave(ctx, "", id))
	require.NoError(w.t, w.DeleteEndpoint(ctx, "", id))
}
