// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/mustang-net/mustang/api"
	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/driver"
	"github.com/mustang-net/mustang/driver/cni"
	"github.com/mustang-net/mustang/driver/link"
	"github.com/mustang-net/mustang/service"
)

var _ api.Host = (*host)(nil)

// Services implements [api.Host].
func (h *host) Services(context.Context) ([]service.View, error) { return h.services.List(), nil }

// AddService implements [api.Host].
func (h *host) AddService(_ context.Context, spec service.Spec) (service.View, error) {
	return h.services.Add(spec)
}

// RemoveService implements [api.Host].
func (h *host) RemoveService(_ context.Context, ref string) error { return h.services.Remove(ref) }

// ApplyServices implements [api.Host].
func (h *host) ApplyServices(_ context.Context, specs []service.Spec) (a api.Applied, err error) {
	a.Added, a.Changed, a.Removed, a.Unchanged, err = h.services.Apply(specs)
	if len(specs) >= largeApply {
		debug.FreeOSMemory()
	}
	return a, err
}

// largeApply services take tens of MiB while they are compared, which a daemon that then idles for
// days would keep: the runtime returns memory only as it is used.
const largeApply = 1000

// Drain implements [api.Host].
func (h *host) Drain(_ context.Context, ref string, undo bool) error {
	return h.services.Drain(ref, undo)
}

// Endpoints implements [api.Host].
func (h *host) Endpoints(context.Context) ([]api.Endpoint, error) {
	networks := map[string]driver.Network{}
	for _, n := range h.driver.Networks() {
		networks[n.ID] = n
	}
	containers := map[string]string{}
	for _, s := range h.services.List() {
		for _, b := range s.Backends {
			containers[b.Addr.Addr().String()] = b.Container
		}
	}
	var out []api.Endpoint
	for i, e := range h.driver.Endpoints() {
		out = append(out, api.Endpoint{
			Endpoint: e, Number: uint32(i + 1), NetworkName: networks[e.NetworkID].Name,
			Container: cmp.Or(h.services.Replica(e.ID, bpf.Frontend{}).Container, containers[e.IPv4.Addr().String()], containers[e.IPv6.Addr().String()]),
		})
	}
	return out, nil
}

// AddEndpoint implements [api.Host].
func (h *host) AddEndpoint(ctx context.Context, ifname, netns string) (api.Endpoint, error) {
	e, err := h.driver.AddByHand(ctx, ifname, netns)
	return api.Endpoint{Endpoint: e, Number: uint32(len(h.driver.Endpoints()))}, err
}

// RemoveEndpoint implements [api.Host].
func (h *host) RemoveEndpoint(ctx context.Context, ref string) error {
	return h.driver.RemoveByHand(ctx, ref)
}

// Networks implements [api.Host].
func (h *host) Networks(context.Context) ([]api.Network, error) {
	endpoints, services := map[string]int{}, map[string]int{}
	for _, e := range h.driver.Endpoints() {
		endpoints[e.NetworkID]++
	}
	for _, s := range h.services.List() {
		services[s.Network]++
	}
	var out []api.Network
	for _, n := range h.driver.Networks() {
		out = append(out, api.Network{
			ID: n.ID, Name: n.Name, Number: n.Number, Mode: n.Options.Mode,
			Subnets: texts(n.Subnets()), VIPs: texts(n.VIPs), Internal: n.Internal, Options: n.Raw,
			Endpoints: endpoints[n.ID], Services: services[cmp.Or(n.Name, n.ID)],
		})
	}
	return out, nil
}

// CNI implements [api.Host]. Who asks for it is about to change something of it.
func (h *host) CNI() cni.Host {
	h.changesCNI.Store(true)
	return h.cni
}

// Ports implements [api.Host].
func (h *host) Ports(context.Context) ([]api.Port, error) {
	uplinks, _, err := h.links.Uplinks(h.inForce.config.Load().Uplinks)
	if err != nil {
		return nil, err
	}
	networks := map[string]driver.Network{}
	for _, n := range h.driver.Networks() {
		networks[n.ID] = n
	}
	var out []api.Port
	for _, p := range h.driver.Ports() {
		replica := h.services.Replica(p.Endpoint, frontendOf(p))
		port := api.Port{
			Protocol: strings.ToLower(p.Protocol.String()), Host: p.Host, Port: p.Port, Count: p.Count, Routed: p.Routed,
			Endpoint: p.Endpoint, Container: replica.Container, NetworkID: p.Network, NetworkName: networks[p.Network].Name,
			Addresses: p.Addrs, State: replica.State, Active: replica.Active,
			Reach: api.ReachAnywhere, Sources: p.Sources, Uplinks: []string{},
		}
		switch {
		case p.Host.Addr().IsLoopback():
			port.Reach = api.ReachHost
		case p.Sources != nil:
			port.Reach = api.ReachSources
		}
		if port.Reach != api.ReachHost {
			port.Uplinks = reachedBy(p.Host.Addr(), uplinks)
		}
		out = append(out, port)
	}
	return out, nil
}

// frontendOf is where the service of a port is. A family that the endpoint lacks is passed on to the other one.
func frontendOf(p driver.PublishedPort) bpf.Frontend {
	f := bpf.Frontend{Addr: p.Host.Addr(), Port: p.Host.Port(), Protocol: p.Protocol}
	has := slices.ContainsFunc(p.Addrs, func(a netip.Addr) bool { return a.Is6() == f.Addr.Is6() })
	switch {
	case has || !f.Addr.IsUnspecified():
	case f.Addr.Is6():
		f.Addr = netip.IPv4Unspecified()
	default:
		f.Addr = netip.IPv6Unspecified()
	}
	return f
}

// reachedBy lists the uplinks by which an address of the host's is reached, and for every address which ones they are.
func reachedBy(a netip.Addr, uplinks []link.Uplink) []string {
	names := []string{}
	for _, u := range uplinks {
		own := u.Addr(a.Is6())
		switch {
		case !a.IsUnspecified():
			names = append(names, u.Name)
		case own.IsValid():
			names = append(names, u.Name+" "+own.String())
		}
	}
	return names
}

func texts[T fmt.Stringer](in []T) []string {
	out := make([]string, len(in))
	for i, v := range in {
		out[i] = v.String()
	}
	return out
}
