// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"time"
)

// collectEvery lies between two looks for what the engine has forgotten. It is far longer than an
// endpoint takes from our record to the engine's.
const collectEvery = 10 * time.Second

// collect tells again and again which networks and endpoints the engine has, until ctx ends: what we
// have beyond is left over from calls that we missed.
func (w *Watcher) collect(ctx context.Context) {
	ticks := time.NewTicker(collectEvery)
	defer ticks.Stop()
	for {
		known, subnets, err := w.known(ctx)
		if err == nil {
			err = w.nets.Collect(known, subnets)
		}
		if err != nil && ctx.Err() == nil {
			w.log.WithError(err).Warn("look for endpoints that the engine has forgotten")
		}
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
	}
}

// known asks the engine for its networks of ours and their endpoints, and for the subnets of which we give addresses.
func (w *Watcher) known(ctx context.Context) (known map[string]map[string]bool, subnets map[netip.Prefix]bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, w.timing.call)
	defer cancel()
	nets, err := w.client.networks(ctx)
	if err != nil {
		return nil, nil, err
	}
	subnets = w.subnets(nets)
	known = map[string]map[string]bool{}
	for _, n := range nets {
		if !isDriver(n.Driver, w.driver) {
			continue
		}
		endpoints, err := w.client.endpoints(ctx, n.ID)
		if errors.Is(err, errNotFound) {
			continue // removed between the two questions
		}
		if err != nil {
			return nil, nil, err
		}
		known[n.ID] = map[string]bool{}
		for id := range endpoints {
			known[n.ID][id] = true
		}
	}
	return known, subnets, nil
}

// subnets are those of which we give addresses, nil if the engine does not say all of them.
func (w *Watcher) subnets(nets []network) map[netip.Prefix]bool {
	subnets := map[netip.Prefix]bool{}
	for _, n := range nets {
		if !isDriver(n.IPAM.Driver, w.driver) {
			continue
		}
		if len(n.IPAM.Config) == 0 {
			return nil
		}
		for _, c := range n.IPAM.Config {
			subnet, err := netip.ParsePrefix(c.Subnet)
			if err != nil {
				return nil
			}
			subnets[subnet.Masked()] = true
		}
	}
	return subnets
}

// attached is a container's endpoint on a network, as the network tells of it.
type attached struct {
	container string // name
	addr      netip.Addr
}

// endpoints lists the endpoints of a network. The engine answers it without a container's lock, so also about those
// that are being started.
func (c *Client) endpoints(ctx context.Context, network string) (map[string]attached, error) {
	var answer struct {
		ID         string `json:"Id"`
		Containers map[string]struct{ EndpointID, Name, IPv4Address, IPv6Address string }
	}
	if err := c.get(ctx, "/networks/"+url.PathEscape(network), nil, &answer); err != nil {
		return nil, err
	}
	if answer.ID != network { // read as a network without endpoints, it would lose all of them
		return nil, fmt.Errorf("inspect network %s: the engine answered about %q", network, answer.ID)
	}
	out := map[string]attached{}
	for _, a := range answer.Containers {
		// The zero Addr where there is none, or none that can be read.
		p, _ := netip.ParsePrefix(cmp.Or(a.IPv4Address, a.IPv6Address))
		out[a.EndpointID] = attached{a.Name, p.Addr()}
	}
	return out, nil
}
