// SPDX-License-Identifier: Apache-2.0

// Package docker speaks the engine's network and IPAM driver protocols.
package docker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/mustang-net/mustang/driver"
)

// Driver makes networks and endpoints; it takes an endpoint that leaves out of its services first. Every Delete, Leave
// and Unpublish of something missing succeeds, and a repeated create or Publish answers as the first one did.
type Driver interface {
	CreateNetwork(ctx context.Context, c driver.NetworkConfig) error
	DeleteNetwork(ctx context.Context, id string) error
	CreateEndpoint(ctx context.Context, c driver.EndpointConfig) (driver.Endpoint, error)
	Endpoint(ctx context.Context, networkID, id string) (driver.Endpoint, error)
	DeleteEndpoint(ctx context.Context, networkID, id string) error
	Join(ctx context.Context, networkID, id, sandboxPath string) (driver.Join, error)
	Leave(ctx context.Context, networkID, id string) error // unpublishes, too
	Publish(ctx context.Context, networkID, id string, ports []driver.PortBinding) error
	Unpublish(ctx context.Context, networkID, id string) error
}

// Pools hands out address pools and addresses. An invalid address asks for any; owner says in
// listings who holds it and may be empty.
type Pools interface {
	RequestPool(space, pool, subPool string, v6 bool) (id string, subnet netip.Prefix, err error)
	ReleasePool(id string) error
	RequestAddress(poolID string, addr netip.Addr, gateway bool, owner string) (netip.Prefix, error)
	ReleaseAddress(poolID string, addr netip.Addr) error
}

// handlerDeadline bounds every answer: the engine itself has no time-out for unmanaged plugins and
// holds the container's lock while it waits.
const handlerDeadline = 5 * time.Second

// NotReady begins what a call is answered while no daemon is ready to do it. The engine shows it as the reason why a container
// did not start.
const NotReady = "mustang is not ready"

// startPatience is how long a call waits for a daemon that starts. It leaves the call time to end before the deadline.
const startPatience = handlerDeadline - time.Second

// Plugin answers the engine's NetworkDriver and IpamDriver calls on one socket.
type Plugin struct {
	log      logrus.FieldLogger
	deadline time.Duration
	patience time.Duration
	server   *http.Server
	measure  atomic.Pointer[func(method string, took time.Duration, err error)]

	settle  sync.Once
	settled chan struct{} // closed by Begin and Refuse, whichever is first
	driver  Driver        // these may be read when settled is closed
	pools   Pools
	refusal error
}

// New makes a plugin that answers what needs no driver. All other calls wait for Begin.
//
// It stands on net/http, not on go-plugins-helpers/sdk: that handler hides its server, so it can be
// neither closed nor given time-outs, and its decoder takes unbounded bodies.
func New(log logrus.FieldLogger) *Plugin {
	p := &Plugin{
		log:      log,
		deadline: handlerDeadline,
		patience: startPatience,
		settled:  make(chan struct{}),
	}
	p.server = &http.Server{
		Handler:           p.routes(),
		ReadHeaderTimeout: handlerDeadline,
		// Above the deadline of a call, whose context would otherwise be cancelled by it.
		ReadTimeout: 2 * handlerDeadline,
		// Never close an idle connection: a call that the engine is just sending on it would fail, and
		// its retry comes with an empty body.
		IdleTimeout: -1,
	}
	return p
}

// Measure has each told of every call that comes from now on: which, how long it took until it was answered, and with what error.
func (p *Plugin) Measure(each func(method string, took time.Duration, err error)) {
	p.measure.Store(&each)
}

// Begin lets calls in.
func (p *Plugin) Begin(d Driver, pools Pools) {
	p.settle.Do(func() {
		p.driver, p.pools = d, pools
		close(p.settled)
	})
}

// Refuse answers all calls that need a driver with an error, unless Begin came first, which it reports.
func (p *Plugin) Refuse(why error) (refused bool) {
	p.settle.Do(func() {
		p.refusal = fmt.Errorf("%s: it could not start: %w: see its log", NotReady, why)
		close(p.settled)
		refused = true
	})
	return refused
}

// Serve answers calls from l until Close, then returns nil.
func (p *Plugin) Serve(l net.Listener) error {
	if err := p.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Close stops taking calls, closes the listener and waits for running calls, at most as long as a
// call may take.
func (p *Plugin) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), p.deadline+time.Second)
	defer cancel()
	if err := p.server.Shutdown(ctx); err != nil {
		return p.server.Close()
	}
	return nil
}

func (p *Plugin) routes() http.Handler {
	mux := http.NewServeMux()
	for method, c := range p.calls() {
		mux.HandleFunc("POST /"+method, func(w http.ResponseWriter, r *http.Request) { p.serve(w, r, method, c) })
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		// The engine reads 404 as "this plugin lacks the method" and goes on without it.
		p.log.WithField("path", r.URL.Path).Warn("the engine called a method that mustang lacks")
		write(w, http.StatusNotFound, failure("mustang has no method "+r.Method+" "+r.URL.Path))
	})
	return mux
}

// calls is the whole protocol, by the method's name on the wire.
func (p *Plugin) calls() map[string]call {
	return map[string]call{
		"Plugin.Activate": fixed(activateResponse{Implements: []string{"NetworkDriver", "IpamDriver"}}),

		"NetworkDriver.GetCapabilities": fixed(capabilitiesResponse{
			Scope: "local", ConnectivityScope: "local", GwAllocChecker: true,
		}),
		"NetworkDriver.GwAllocCheck":                on(p.gwAllocCheck),
		"NetworkDriver.CreateNetwork":               on(p.createNetwork),
		"NetworkDriver.DeleteNetwork":               removing(p.deleteNetwork),
		"NetworkDriver.AllocateNetwork":             on(p.allocateNetwork),
		"NetworkDriver.FreeNetwork":                 removing(p.freeNetwork),
		"NetworkDriver.CreateEndpoint":              on(p.createEndpoint),
		"NetworkDriver.EndpointOperInfo":            on(p.endpointInfo),
		"NetworkDriver.DeleteEndpoint":              removing(p.deleteEndpoint),
		"NetworkDriver.Join":                        on(p.join),
		"NetworkDriver.Leave":                       removing(p.leave),
		"NetworkDriver.ProgramExternalConnectivity": on(p.programExternal),
		"NetworkDriver.RevokeExternalConnectivity":  removing(p.revokeExternal),
		"NetworkDriver.DiscoverNew":                 on(p.discover),
		"NetworkDriver.DiscoverDelete":              on(p.discover),

		// No replay: pools and leases are on mustang's own disk, and a replay at every start of the
		// engine would only make its boot wait for us. No MAC: one that IPAM asked for breaks ipvlan.
		"IpamDriver.GetCapabilities": fixed(ipamCapabilitiesResponse{}),
		"IpamDriver.GetDefaultAddressSpaces": fixed(addressSpacesResponse{
			LocalDefaultAddressSpace: localSpace, GlobalDefaultAddressSpace: globalSpace,
		}),
		"IpamDriver.RequestPool":    on(p.requestPool),
		"IpamDriver.ReleasePool":    removing(p.releasePool),
		"IpamDriver.RequestAddress": on(p.requestAddress),
		"IpamDriver.ReleaseAddress": removing(p.releaseAddress),
	}
}
