// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"errors"

	"github.com/mustang-net/mustang/driver/link"
)

// Collect removes networks and endpoints that the engine does not know: it forgets them without
// telling us when we are away while it removes them. known maps the engine's networks of ours to
// their endpoints. What is missing twice in a row goes, so callers leave some time between calls:
// an endpoint that is just being made is ours before it is the engine's.
func (m *Manager) Collect(known map[string]map[string]bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	missing := map[string]bool{}
	for id, e := range m.endpoints {
		if e.Source != SourceDocker || known[e.NetworkID][id] {
			continue
		}
		missing[id] = true
		if m.missing[id] && !m.inUse(e) {
			m.log.WithField("endpoint", id).Info("removing an endpoint that the engine has forgotten")
			errs = append(errs, m.tearDownEndpoint(e))
		}
	}
	for id, n := range m.networks {
		if _, ok := known[id]; ok || n.Source == SourceCNI {
			continue
		}
		missing[id] = true
		if m.missing[id] && !m.hasEndpoints(id) {
			m.log.WithField("network", id).Info("removing a network that the engine has forgotten")
			errs = append(errs, m.tearDownNetwork(n))
		}
	}
	if m.orphaned {
		errs = append(errs, m.collectOrphans(known, missing))
	}
	m.missing = missing
	return errors.Join(errs...)
}

// inUse tells whether the endpoint's sandbox still exists: whatever an engine says, it is no leftover.
func (m *Manager) inUse(e *Endpoint) bool {
	if e.Cookie == 0 {
		return false
	}
	cookie, err := m.links.Cookie(e.Sandbox)
	if err != nil {
		return !errors.Is(err, link.ErrNoNetns) // it may well be alive
	}
	return cookie == e.Cookie
}

func (m *Manager) hasEndpoints(network string) bool {
	for _, e := range m.endpoints {
		if e.NetworkID == network {
			return true
		}
	}
	return false
}
