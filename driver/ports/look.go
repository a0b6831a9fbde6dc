// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"errors"
	"net/netip"

	"github.com/mustang-net/mustang/drift"
)

// Look tells which ports are not held that should be.
type Look struct {
	Holder *Holder
	Report drift.Report
}

// Hold compares a port.
func (l Look) Hold(p Port, _ netip.AddrPort) error {
	l.Holder.mu.Lock()
	_, held := l.Holder.held[keyOf(p.Addr, p.udp())]
	l.Holder.mu.Unlock()
	if !held {
		l.Report.Missing("port "+p.String(), "a socket that keeps it from others")
	}
	return nil
}

// HoldEvery compares a port of every address.
func (l Look) HoldEvery(protocol string, number uint16, _, _ netip.AddrPort) error {
	for _, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if err := l.Hold(Port{Addr: netip.AddrPortFrom(a, number), Protocol: protocol}, netip.AddrPort{}); err != nil {
			return err
		}
	}
	return nil
}

// Restrict changes nothing.
func (Look) Restrict(Port, []netip.Prefix) {}

// Release changes nothing.
func (Look) Release(Port) {}

// Free finds nothing: nobody asks for a port who only looks.
func (Look) Free(string, []netip.Addr) (uint16, error) { return 0, errors.ErrUnsupported }
