// SPDX-License-Identifier: Apache-2.0

package api

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/service"
)

// Service is a service in JSON: what the socket carries, `svc ls -o json` prints and `svc apply`
// reads. A hand-made one needs frontends and backends only.
type Service struct {
	ID        uint32         `json:"id,omitempty"`      // given by mustang, ignored in requests
	Source    service.Source `json:"source,omitempty"`  // "" or svc in requests
	Name      string         `json:"name,omitempty"`    // see CheckName
	Network   string         `json:"network,omitempty"` // name or id; "" is the host scope
	Frontends []Frontend     `json:"frontends"`
	Backends  []Backend      `json:"backends"`
	Affinity  uint32         `json:"affinity_seconds,omitempty"` // how long a client keeps its backend; 0 for not at all
}

// Frontend is where a service is reached, in JSON.
type Frontend struct {
	Address  string `json:"address"`            // IPv4 or IPv6, without brackets
	Port     int    `json:"port"`               // 1 to 65535; 0 for every port
	Protocol string `json:"protocol,omitempty"` // tcp, udp, any; "" means any
}

// Backend is where flows of a service end, in JSON.
type Backend struct {
	ID        uint32        `json:"id,omitempty"`        // given by mustang, ignored in requests
	Address   string        `json:"address"`             // ADDR:PORT, or ADDR to keep the frontend's port; IPv6 in brackets
	Weight    uint32        `json:"weight,omitempty"`    // 1 to 100; 0 means 1
	State     service.Phase `json:"state,omitempty"`     // in requests "draining" asks for no new flows
	Active    bool          `json:"active"`              // gets new flows now; ignored in requests
	Container string        `json:"container,omitempty"` // name; ignored in requests
}

// maxWeight bounds weights so that a service's slots stay few.
const maxWeight = 100

// ServiceOf is the JSON form of a listed service.
func ServiceOf(v service.View) Service {
	s := Service{
		ID: v.ID, Source: v.Source, Name: v.Name, Network: v.Network, Affinity: v.Affinity,
		Frontends: make([]Frontend, 0, len(v.Frontends)),
		Backends:  make([]Backend, 0, len(v.Backends)),
	}
	for _, f := range v.Frontends {
		s.Frontends = append(s.Frontends, FrontendOf(f))
	}
	for _, b := range v.Backends {
		s.Backends = append(s.Backends, Backend{
			ID: b.ID, Address: FormatTarget(b.Addr), Weight: b.Weight,
			State: b.State, Active: b.Active, Container: b.Container,
		})
	}
	return s
}

// ServicesOf is the JSON form of a listing; it is never nil.
func ServicesOf(views []service.View) []Service {
	list := make([]Service, 0, len(views))
	for _, v := range views {
		list = append(list, ServiceOf(v))
	}
	return list
}

// SpecOf is the JSON form of a hand-made service that is asked for.
func SpecOf(spec service.Spec) Service {
	s := Service{
		Name: spec.Name, Affinity: spec.Affinity,
		Frontends: []Frontend{FrontendOf(spec.Frontend)},
		Backends:  make([]Backend, 0, len(spec.Backends)),
	}
	for _, t := range spec.Backends {
		b := Backend{Address: FormatTarget(t.Addr), Weight: t.Weight}
		if t.Drain {
			b.State = service.PhaseDraining
		}
		s.Backends = append(s.Backends, b)
	}
	return s
}

// FrontendOf is the JSON form of a frontend.
func FrontendOf(f bpf.Frontend) Frontend {
	protocol := "any"
	if f.Protocol != bpf.ProtocolAny {
		protocol = strings.ToLower(f.Protocol.String())
	}
	return Frontend{Address: f.Addr.String(), Port: int(f.Port), Protocol: protocol}
}

// View is the inverse of [ServiceOf]. It checks shape only: a daemon's answer is not judged.
func (s Service) View() (service.View, error) {
	v := service.View{ID: s.ID, Source: s.Source, Name: s.Name, Network: s.Network, Affinity: s.Affinity}
	for _, f := range s.Frontends {
		frontend, err := f.parse()
		if err != nil {
			return service.View{}, fmt.Errorf("service %d: %w", s.ID, err)
		}
		v.Frontends = append(v.Frontends, frontend)
	}
	for _, b := range s.Backends {
		addr, err := ParseTarget(b.Address)
		if err != nil {
			return service.View{}, fmt.Errorf("service %d: backend: %w", s.ID, err)
		}
		v.Backends = append(v.Backends, service.BackendView{
			ID: b.ID, Addr: addr, Weight: b.Weight, State: b.State, Active: b.Active, Container: b.Container,
		})
	}
	return v, nil
}

// Specs are the hand-made services that s asks for, one per frontend, each with the backends of its
// family. What a person can get wrong can get wrong in writing is checked here, for files, flags and the socket alike.
func (s Service) Specs() ([]service.Spec, error) {
	if s.Name != "" {
		if err := CheckName(s.Name); err != nil {
			return nil, err
		}
	}
	if len(s.Frontends) == 0 {
		return nil, fmt.Errorf("service %q has no frontend: name an address, such as 10.96.0.100, and a port", s.Name)
	}
	if s.Name != "" && len(s.Frontends) > 1 {
		return nil, fmt.Errorf("service %q has %d frontends: give each a service and a name of its own", s.Name, len(s.Frontends))
	}
	specs := make([]service.Spec, 0, len(s.Frontends))
	for _, f := range s.Frontends {
		frontend, err := f.parse()
		if err == nil {
			err = checkFrontend(frontend)
		}
		if err != nil {
			return nil, err
		}
		specs = append(specs, service.Spec{Name: s.Name, Frontend: frontend, Affinity: s.Affinity, Backends: []service.Target{}})
	}
	for _, b := range s.Backends {
		target, err := b.target()
		if err != nil {
			return nil, fmt.Errorf("frontend %s: %w", FormatFrontend(specs[0].Frontend), err)
		}
		if err := assign(specs, target); err != nil {
			return nil, err
		}
	}
	return specs, nil
}

// assign adds target to the specs of its family.
func assign(specs []service.Spec, target service.Target) error {
	found := false
	for i := range specs {
		if specs[i].Frontend.Addr.Is4() != target.Addr.Addr().Is4() {
			continue
		}
		for _, other := range specs[i].Backends {
			if other.Addr == target.Addr {
				return fmt.Errorf("frontend %s has backend %s twice: give it a weight instead",
					FormatFrontend(specs[i].Frontend), FormatTarget(target.Addr))
			}
		}
		specs[i].Backends = append(specs[i].Backends, target)
		found = true
	}
	if !found {
		return fmt.Errorf("backend %s and frontend %s are of different families: use IPv4 for both or IPv6 for both",
			FormatTarget(target.Addr), FormatFrontend(specs[0].Frontend))
	}
	return nil
}

func (f Frontend) parse() (bpf.Frontend, error) {
	addr, err := netip.ParseAddr(f.Address)
	if err != nil {
		return bpf.Frontend{}, fmt.Errorf("frontend address %q is no IP address: give one such as 10.96.0.100", f.Address)
	}
	if f.Port < 0 || f.Port > 65535 {
		return bpf.Frontend{}, fmt.Errorf("frontend %s has port %d: choose 1 to 65535, or 0 for every port", f.Address, f.Port)
	}
	protocol, err := bpf.ParseProtocol(f.Protocol)
	if n, numErr := strconv.ParseUint(f.Protocol, 10, 8); numErr == nil {
		protocol, err = bpf.Protocol(n), nil
	}
	if err != nil {
		return bpf.Frontend{}, fmt.Errorf("frontend %s: %w", f.Address, err)
	}
	return bpf.Frontend{Addr: addr.Unmap(), Port: uint16(f.Port), Protocol: protocol}, nil
}

func (b Backend) target() (service.Target, error) {
	addr, err := ParseTarget(b.Address)
	if err == nil {
		err = checkBackend(addr)
	}
	if err != nil {
		return service.Target{}, err
	}
	if b.Weight > maxWeight {
		return service.Target{}, fmt.Errorf("backend %s has weight %d: choose 1 to %d", b.Address, b.Weight, maxWeight)
	}
	return service.Target{Addr: addr, Weight: b.Weight, Drain: b.State == service.PhaseDraining}, nil
}
