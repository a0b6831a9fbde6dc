// SPDX-License-Identifier: Apache-2.0

// Package apitest is an api.Host in memory, for tests of what speaks to one.
package apitest

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/mustang-net/mustang/api"
	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/drift"
	"github.com/mustang-net/mustang/driver"
	"github.com/mustang-net/mustang/driver/cni"
	"github.com/mustang-net/mustang/monitor"
	"github.com/mustang-net/mustang/service"
)

// Host keeps what it is told. The zero Host is empty and not ready; fields may be set before use.
type Host struct {
	ServiceList  []service.View
	EndpointList []api.Endpoint
	NetworkList  []api.Network
	PortList     []api.Port
	State        api.Status
	EventList    []monitor.Event    // what Monitor tells of
	Differences  []drift.Difference // that a repair mends, but for those with other advice
	Notes        []drift.Difference
	Runtimes     cni.Host
	// Fail, if set, is what every method returns.
	Fail error
	// Drained counts, by backend address or container, Drain calls that are not undone.
	Drained map[string]int

	mu     sync.Mutex
	lastID uint32
}

var _ api.Host = (*Host)(nil)

type notFound struct{ error }

func (notFound) NotFound() {}

type conflict struct{ error }

func (conflict) Conflict() {}

func (h *Host) Services(context.Context) ([]service.View, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.ServiceList), h.Fail
}

func (h *Host) AddService(_ context.Context, spec service.Spec) (service.View, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.Fail != nil {
		return service.View{}, h.Fail
	}
	if i := h.byFrontend(spec.Frontend); i >= 0 {
		return service.View{}, conflict{fmt.Errorf("add service %s: service %d has this frontend",
			api.FormatFrontend(spec.Frontend), h.ServiceList[i].ID)}
	}
	return h.add(spec), nil
}

func (h *Host) RemoveService(_ context.Context, ref string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.Fail != nil {
		return h.Fail
	}
	before := len(h.ServiceList)
	h.ServiceList = slices.DeleteFunc(h.ServiceList, func(v service.View) bool {
		return v.Source == service.SourceHand && api.Matches(v, ref)
	})
	if len(h.ServiceList) == before {
		return notFound{fmt.Errorf("remove service %s: no hand-made service has this frontend, id or name", ref)}
	}
	return nil
}

func (h *Host) ApplyServices(_ context.Context, specs []service.Spec) (api.Applied, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.Fail != nil {
		return api.Applied{}, h.Fail
	}
	var done api.Applied
	kept := map[uint32]bool{}
	for _, spec := range specs {
		i := h.byFrontend(spec.Frontend)
		if i < 0 {
			kept[h.add(spec).ID] = true
			done.Added++
			continue
		}
		view := viewOf(h.ServiceList[i].ID, spec)
		kept[view.ID] = true
		if fmt.Sprint(view) == fmt.Sprint(h.ServiceList[i]) {
			done.Unchanged++
			continue
		}
		h.ServiceList[i] = view
		done.Changed++
	}
	before := len(h.ServiceList)
	h.ServiceList = slices.DeleteFunc(h.ServiceList, func(v service.View) bool {
		return v.Source == service.SourceHand && !kept[v.ID]
	})
	done.Removed = before - len(h.ServiceList)
	return done, nil
}

func (h *Host) Drain(_ context.Context, ref string, undo bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.Fail != nil {
		return h.Fail
	}
	found := false
	for i := range h.ServiceList {
		for j := range h.ServiceList[i].Backends {
			b := &h.ServiceList[i].Backends[j]
			if ref != b.Container && ref != api.FormatTarget(b.Addr) && ref != b.Addr.Addr().String() {
				continue
			}
			found = true
			b.State, b.Active = service.PhaseDraining, false
			if undo {
				b.State, b.Active = service.PhaseReady, true
			}
		}
	}
	if !found {
		return notFound{fmt.Errorf("drain %s: no backend has this address or container", ref)}
	}
	if h.Drained == nil {
		h.Drained = map[string]int{}
	}
	if undo {
		delete(h.Drained, ref)
	} else {
		h.Drained[ref]++
	}
	return nil
}

func (h *Host) Endpoints(context.Context) ([]api.Endpoint, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.EndpointList), h.Fail
}

func (h *Host) AddEndpoint(_ context.Context, ifname, netns string) (api.Endpoint, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.Fail != nil {
		return api.Endpoint{}, h.Fail
	}
	n := len(h.EndpointList) + 1
	e := api.Endpoint{Number: uint32(n), Endpoint: driver.Endpoint{
		ID: fmt.Sprintf("ep-%d", n), Source: "ep", Sandbox: netns, PeerIf: ifname,
		IPv4: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 10, byte(9 + n)}), 24),
		MAC:  fmt.Sprintf("76:6c:37:2c:81:%02x", n), HostMAC: fmt.Sprintf("3e:e9:02:96:60:%02x", n),
		HostIf: fmt.Sprintf("veth%d", n), Index: 651 + 2*n,
	}}
	h.EndpointList = append(h.EndpointList, e)
	return e, nil
}

func (h *Host) RemoveEndpoint(_ context.Context, ref string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.Fail != nil {
		return h.Fail
	}
	before := len(h.EndpointList)
	h.EndpointList = slices.DeleteFunc(h.EndpointList, func(e api.Endpoint) bool {
		return ref == e.IPv4.Addr().String() || ref == e.IPv6.Addr().String()
	})
	if len(h.EndpointList) == before {
		return notFound{fmt.Errorf("remove endpoint %s: no endpoint has this address", ref)}
	}
	return nil
}

func (h *Host) Networks(context.Context) ([]api.Network, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.NetworkList), h.Fail
}

func (h *Host) CNI() cni.Host { return h.Runtimes }

func (h *Host) Ports(context.Context) ([]api.Port, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.PortList), h.Fail
}

func (h *Host) Status(context.Context) (api.Status, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.State, h.Fail
}

// SetStatus replaces what Status answers, while the Host is in use.
func (h *Host) SetStatus(s api.Status) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.State = s
}

func (h *Host) byFrontend(f bpf.Frontend) int {
	return slices.IndexFunc(h.ServiceList, func(v service.View) bool { return slices.Contains(v.Frontends, f) })
}

func (h *Host) add(spec service.Spec) service.View {
	for _, v := range h.ServiceList {
		h.lastID = max(h.lastID, v.ID)
	}
	h.lastID++
	v := viewOf(h.lastID, spec)
	h.ServiceList = append(h.ServiceList, v)
	return v
}

func viewOf(id uint32, spec service.Spec) service.View {
	v := service.View{
		ID: id, Source: service.SourceHand, Name: spec.Name, Affinity: spec.Affinity,
		Frontends: []bpf.Frontend{spec.Frontend},
	}
	for i, t := range spec.Backends {
		b := service.BackendView{ID: id*100 + uint32(i), Addr: t.Addr, Weight: max(t.Weight, 1), State: service.PhaseReady, Active: true}
		if t.Drain {
			b.State, b.Active = service.PhaseDraining, false
		}
		v.Backends = append(v.Backends, b)
	}
	return v
}

func (h *Host) Monitor(_ context.Context, filter monitor.Filter, tell func(monitor.Event) error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.Fail != nil {
		return h.Fail
	}
	for _, e := range append([]monitor.Event{{Kind: monitor.EventBegun}}, h.EventList...) {
		if !filter.Match(e) {
			continue
		}
		if err := tell(e); err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) Verify(_ context.Context, repair bool) (api.Verification, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	v := api.Verification{Differences: []drift.Difference{}, Mended: []drift.Difference{}, Notes: slices.Clone(h.Notes)}
	for _, d := range h.Differences {
		if repair && d.Do == drift.Repair {
			v.Mended = append(v.Mended, d)
		} else {
			v.Differences = append(v.Differences, d)
		}
	}
	if h.Fail == nil {
		h.Differences = v.Differences
	}
	return v, h.Fail
}

// SetDrift sets what Verify tells of.
func (h *Host) SetDrift(differences, notes []drift.Difference) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Differences, h.Notes = differences, notes
}

// SetEvents sets what Monitor tells of.
func (h *Host) SetEvents(list []monitor.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.EventList = list
}
