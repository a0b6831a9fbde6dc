// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"errors"
	"fmt"
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
		known, err := w.known(ctx)
		if err == nil {
			err = w.nets.Collect(known)
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

// known asks the engine for its networks of ours and their endpoints.
func (w *Watcher) known(ctx context.Context) (map[string]map[string]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, w.timing.call)
	defer cancel()
	nets, err := w.client.networks(ctx)
	if err != nil {
		return nil, err
	}
	known := map[string]map[string]bool{}
	for _, n := range nets {
		if !isDriver(n.Driver, w.driver) {
			continue
		}
		endpoints, err := w.client.endpoints(ctx, n.ID)
		if errors.Is(err, errNotFound) {
			continue // removed between the two questions
		}
		if err != nil {
			return nil, err
		}
		known[n.ID] = map[string]bool{}
		for id := range endpoints {
			known[n.ID][id] = true
		}
	}
	return known, nil
}

// endpoints lists the endpoints of a network, each with its container's name. The engine answers it without a
// container's lock, so also about those that are being started.
func (c *Client) endpoints(ctx context.Context, network string) (map[string]string, error) {
	var answer struct {
		ID         string `json:"Id"`
		Containers map[string]struct{ EndpointID, Name string }
	}
	if err := c.get(ctx, "/networks/"+url.PathEscape(network), nil, &answer); err != nil {
		return nil, err
	}
	if answer.ID != network { // read as a network without endpoints, it would lose all of them
		return nil, fmt.Errorf("inspect network %s: the engine answered about %q", network, answer.ID)
	}
	out := map[string]string{}
	for _, a := range answer.Containers {
		out[a.EndpointID] = a.Name
	}
	return out, nil
}
