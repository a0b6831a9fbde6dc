// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"fmt"
	"maps"

	"github.com/mustang-net/mustang/drift"
)

// Look has the methods of [Tables] that change something, and tells what they would change instead of doing it.
type Look struct {
	*Tables
	Report drift.Report
}

// PutSandbox compares the services in the table of a sandbox. Its names are looked after by every [Tables.Beat].
func (l Look) PutSandbox(s Sandbox) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	what := "nftables of the sandbox " + s.Path
	b := l.boxes[s.Cookie]
	if b == nil {
		l.Report.Missing(what, "known to this process")
		return nil
	}
	found, err := b.tables.frontends()
	switch {
	case err != nil:
		l.Report.Differs(what, fmt.Sprintf("%d frontends", len(b.has)), err.Error())
	case b.wrong || b.failed != nil:
		l.Report.Differs(what, fmt.Sprintf("%d frontends", len(b.has)), "tables that could not be written")
	case !maps.Equal(found, b.has):
		l.Report.Differs(what, fmt.Sprintf("%d frontends", len(b.has)), fmt.Sprintf("%d, or others", len(found)))
	}
	return nil
}

// DeleteSandbox changes nothing.
func (Look) DeleteSandbox(uint64, string) error { return nil }

// SetEnds compares the host's tables.
func (l Look) SetEnds(ends []End) error {
	if len(ends) == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	stand, err := l.kernel.endsStand(ends)
	if err == nil && !stand {
		l.Report.Differs("nftables of the host", "tables for networks with ebpf=off, let through the engine's firewall", "they are not complete")
	}
	return err
}

// Doubt has every sandbox's table written anew when it is next put, as after a start.
func (t *Tables) Doubt() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, b := range t.boxes {
		b.wrong = true
	}
}
