// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"

	"github.com/sirupsen/logrus"

	"github.com/mustang-net/mustang/driver"
)

// fakeHost is an in-memory Driver, Pools and Containers that writes down what it is asked.
type fakeHost struct {
	mu        sync.Mutex
	did       []string
	networks  map[string]driver.NetworkConfig
	endpoints map[string]driver.Endpoint
	pools     map[string]netip.Prefix
	leases    map[netip.Addr]bool
	published map[string][]driver.PortBinding // by endpoint
	gate      chan struct{}                   // when not nil, creates wait for it and do not mind their context
	panics    bool
}

func newFakeHost() *fakeHost {
	return &fakeHost{
		networks:  make(map[string]driver.NetworkConfig),
		endpoints: make(map[string]driver.Endpoint),
		pools:     make(map[string]netip.Prefix),
		leases:    make(map[netip.Addr]bool),
		published: make(map[string][]driver.PortBinding),
	}
}

func (f *fakeHost) note(format string, args ...any) func() {
	if f.gate != nil {
		<-f.gate
	}
	if f.panics {
		panic("a bug")
	}
	f.mu.Lock()
	f.did = append(f.did, fmt.Sprintf(format, args...))
	return f.mu.Unlock
}

func (f *fakeHost) take() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	did := f.did
	f.did = nil
	return did
}

func (f *fakeHost) empty() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.networks)+len(f.endpoints)+len(f.pools)+len(f.leases)+len(f.published) == 0
}

func (f *fakeHost) CreateNetwork(_ context.Context, c driver.NetworkConfig) error {
	defer f.note("create network %s v4=%v v6=%v internal=%v options=%v", c.ID, c.IPv4, c.IPv6, c.Internal, c.Options)()
	f.networks[c.ID] = c
	return nil
}

func (f *fakeHost) DeleteNetwork(_ context.Context, id string) error {
	defer f.note("delete network %s", id)()
	delete(f.networks, id)
	return nil
}

func (f *fakeHost) CreateEndpoint(_ context.Context, c driver.EndpointConfig) (driver.Endpoint, error) {
	defer f.note("create endpoint %s v4=%v v6=%v mac=%s options=%v", c.ID, c.IPv4, c.IPv6, c.MAC, c.Options)()
	if _, ok := f.networks[c.NetworkID]; !ok {
		return driver.Endpoint{}, fmt.Errorf("network %s does not exist", c.NetworkID)
	}
	ep := driver.Endpoint{ID: c.ID, NetworkID: c.NetworkID, IPv4: c.IPv4, IPv6: c.IPv6, MAC: c.MAC,
		IfName: c.Options["com.docker.network.endpoint.ifname"]}
	if ep.MAC == "" {
		ep.MAC = "02:42:0a:00:00:02"
	}
	f.endpoints[c.ID] = ep
	return ep, nil
}

func (f *fakeHost) Endpoint(_ context.Context, _, id string) (driver.Endpoint, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ep, ok := f.endpoints[id]
	if !ok {
		return ep, fmt.Errorf("endpoint %s does not exist", id)
	}
	return ep, nil
}

func (f *fakeHost) DeleteEndpoint(_ context.Context, _, id string) error {
	defer f.note("delete endpoint %s", id)()
	delete(f.endpoints, id)
	return nil
}

func (f *fakeHost) Join(_ context.Context, networkID, id, sandbox string) (driver.Join, error) {
	defer f.note("join %s %s", id, sandbox)()
	ep, ok := f.endpoints[id]
	if !ok {
		return driver.Join{}, fmt.Errorf("endpoint %s does not exist", id)
	}
	j := driver.Join{SrcName: "mstp" + id, DstPrefix: "eth", DstName: ep.IfName,
		Routes: []netip.Prefix{netip.MustParsePrefix("10.96.1.0/24")}}
	n := f.networks[networkID]
	if len(n.IPv4) > 0 && !n.Internal {
		j.Gateway = n.IPv4[0].Gateway.Addr()
	}
	if len(n.IPv6) > 0 && !n.Internal {
		j.Gateway6 = n.IPv6[0].Gateway.Addr()
	}
	j.DisableGatewayService = n.Internal
	return j, nil
}

func (f *fakeHost) Leave(_ context.Context, _, id string) error {
	defer f.note("leave %s", id)()
	delete(f.published, id)
	return nil
}

func (f *fakeHost) Publish(_ context.Context, _, id string, ports []driver.PortBinding) error {
	var list []string
	for _, p := range ports {
		host := ""
		if p.Host.IsValid() {
			host = p.Host.String()
		}
		list = append(list, fmt.Sprintf("%s:%d-%d:%d/%s", host, p.HostPort, p.HostPortEnd, p.Port, p.Protocol))
	}
	defer f.note("publish %s %v", id, list)()
	f.published[id] = ports
	return nil
}

func (f *fakeHost) Unpublish(_ context.Context, _, id string) error {
	defer f.note("unpublish %s", id)()
	delete(f.published, id)
	return nil
}

func (f *fakeHost) RequestPool(space, pool, sub string, v6 bool) (string, netip.Prefix, error) {
	defer f.note("request pool %s %q %q v6=%v", space, pool, sub, v6)()
	if pool == "" {
		pool = "10.0.0.0/24"
		if v6 {
			pool = "fd00:6d::/64"
		}
	}
	p := netip.MustParsePrefix(pool)
	f.pools["pool-"+pool] = p
	return "pool-" + pool, p, nil
}

func (f *fakeHost) ReleasePool(id string) error {
	defer f.note("release pool %s", id)()
	delete(f.pools, id)
	return nil
}

func (f *fakeHost) RequestAddress(id string, addr netip.Addr, gateway bool, owner string) (netip.Prefix, error) {
	defer f.note("request address %s %v gateway=%v owner=%q", id, addr, gateway, owner)()
	p, ok := f.pools[id]
	if !ok {
		return netip.Prefix{}, fmt.Errorf("pool %s does not exist", id)
	}
	if !addr.IsValid() {
		for addr = p.Addr().Next(); f.leases[addr]; {
			addr = addr.Next()
		}
	}
	f.leases[addr] = true
	return netip.PrefixFrom(addr, p.Bits()), nil
}

func (f *fakeHost) ReleaseAddress(id string, addr netip.Addr) error {
	defer f.note("release address %s %v", id, addr)()
	delete(f.leases, addr)
	return nil
}

func (f *fakeHost) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.did)
}

// index gives the position of what was done, or -1.
func (f *fakeHost) index(what string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Index(f.did, what)
}

func newPlugin(f *fakeHost) *Plugin {
	log := logrus.New()
	log.SetOutput(io.Discard)
	p := New(log)
	p.Begin(f, f)
	return p
}
