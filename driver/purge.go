// SPDX-License-Identifier: Apache-2.0

package driver

import "errors"

// Purge removes from the kernel what the state tells of and what carries our mark, so that nothing of mustang's is left but
// pins; running containers lose these networks. The state is emptied with it: who wants to keep it works on a copy.
// It goes on past errors and returns them all.
func (m *Manager) Purge() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for _, e := range m.endpoints {
		errs = append(errs, m.tearDownEndpoint(e))
	}
	for _, n := range m.networks {
		errs = append(errs, m.tearDownNetwork(n))
	}
	for name := range m.uplinks {
		errs = append(errs, m.links.DetachClsact(name)) // of a kernel without TCX
	}
	errs = append(errs, m.setUplinks(nil), m.setEnds())
	owned, err := m.links.Owned()
	errs = append(errs, err)
	for name, owner := range owned { // of a state that was lost
		errs = append(errs, m.links.Delete(name, owner))
	}
	refused, err := m.links.Refused()
	errs = append(errs, err)
	for _, p := range refused {
		errs = append(errs, m.links.Unrefuse(p))
	}
	return errors.Join(errs...)
}

// InUse counts the endpoints whose sandboxes run, and devices of a state that was lost: nobody knows what runs behind those.
func (m *Manager) InUse() (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	used := 0
	for _, e := range m.endpoints {
		if m.inUse(e) {
			used++
		}
	}
	if !m.fresh && !m.orphaned {
		return used, nil
	}
	owned, err := m.links.Owned()
	for _, owner := range owned {
		if m.endpoints[owner] == nil && m.networks[owner] == nil {
			used++
		}
	}
	return used, err
}
