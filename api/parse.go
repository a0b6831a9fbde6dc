// SPDX-License-Identifier: Apache-2.0

package api

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/service"
)

// nameForm is a DNS name of lower or upper case, with the underscores that Compose allows. It is compiled when it is used: a runtime of
// CNI starts our program for every container.
var nameForm = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?$`) })

// CheckName refuses names that a hand-made service cannot have: what is no DNS name, and what would
// read as an id or an address wherever a service is referred to.
func CheckName(name string) error {
	if !nameForm().MatchString(name) {
		return fmt.Errorf("service name %q: use 1 to 253 letters, digits, \"-\", \"_\" and \".\", with a letter or digit at both ends", name)
	}
	_, notID := strconv.ParseUint(name, 10, 64)
	_, notAddr := netip.ParseAddr(name)
	if notID == nil || notAddr == nil {
		return fmt.Errorf("service name %q reads as an id or an address: choose one with letters", name)
	}
	return nil
}

// ParseTarget reads ADDR:PORT or ADDR, IPv6 in brackets. Without a port the result has port 0.
func ParseTarget(s string) (netip.AddrPort, error) {
	var host, port string
	var hasPort bool
	if rest, v6 := strings.CutPrefix(s, "["); v6 {
		var closed bool
		host, port, closed = strings.Cut(rest, "]")
		if !closed {
			return netip.AddrPort{}, fmt.Errorf("%q lacks the closing bracket: write [ADDR]:PORT", s)
		}
		if port, hasPort = strings.CutPrefix(port, ":"); !hasPort && port != "" {
			return netip.AddrPort{}, fmt.Errorf("%q has %q after the bracket: write [ADDR]:PORT", s, port)
		}
	} else if strings.Count(s, ":") > 1 {
		return netip.AddrPort{}, fmt.Errorf("%q: put an IPv6 address in brackets: [ADDR]:PORT", s)
	} else {
		host, port, hasPort = strings.Cut(s, ":")
	}
	addr, err := netip.ParseAddr(host)
	if err != nil || addr.Is6() != strings.HasPrefix(s, "[") {
		return netip.AddrPort{}, fmt.Errorf("%q is no ADDR:PORT: %q is no IP address, give one such as 10.96.0.100:80", s, host)
	}
	number := uint64(0)
	if hasPort {
		number, err = strconv.ParseUint(port, 10, 16)
		if err != nil || number == 0 {
			return netip.AddrPort{}, fmt.Errorf("%q has port %q: choose 1 to 65535, or leave it out for every port", s, port)
		}
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(number)), nil
}

// FormatTarget is the inverse of [ParseTarget].
func FormatTarget(a netip.AddrPort) string {
	switch {
	case a.Port() != 0:
		return a.String()
	case a.Addr().Is4():
		return a.Addr().String()
	}
	return "[" + a.Addr().String() + "]"
}

// ParseBackend reads ADDR:PORT@WEIGHT or any part of it from the left.
func ParseBackend(s string) (Backend, error) {
	target, weight, weighted := strings.Cut(s, "@")
	b := Backend{Address: target}
	if weighted {
		n, err := strconv.ParseUint(weight, 10, 32)
		if err != nil || n < 1 || n > maxWeight {
			return Backend{}, fmt.Errorf("backend %s has weight %q: choose 1 to %d", target, weight, maxWeight)
		}
		b.Weight = uint32(n)
	}
	if _, err := b.target(); err != nil {
		return Backend{}, err
	}
	return b, nil
}

// ParseFrontend reads ADDR:PORT or ADDR, with protocol tcp, udp, any or "" (any).
func ParseFrontend(target, protocol string) (Frontend, error) {
	addr, err := ParseTarget(target)
	if err != nil {
		return Frontend{}, err
	}
	number, err := bpf.ParseProtocol(protocol)
	if err != nil {
		return Frontend{}, err
	}
	f := bpf.Frontend{Addr: addr.Addr(), Port: addr.Port(), Protocol: number}
	return FrontendOf(f), checkFrontend(f)
}

// FormatFrontend writes ADDR:PORT or ADDR as [ParseTarget] reads it, after "tcp:" or "udp:" if the
// frontend has one protocol only. It is what services are referred to by.
func FormatFrontend(f bpf.Frontend) string {
	target := FormatTarget(netip.AddrPortFrom(f.Addr, f.Port))
	if f.Protocol == bpf.ProtocolAny {
		return target
	}
	return strings.ToLower(f.Protocol.String()) + ":" + target
}

// Matches says whether ref ("10.96.0.100:5201", "tcp:10.96.0.100:5201", an id or a name) means v.
// An address and port without a protocol mean a frontend of any protocol.
func Matches(v service.View, ref string) bool {
	if ref == strconv.FormatUint(uint64(v.ID), 10) || v.Name != "" && ref == v.Name {
		return true
	}
	target, protocol := ref, ""
	if head, rest, ok := strings.Cut(ref, ":"); ok && (head == "tcp" || head == "udp" || head == "any") {
		target, protocol = rest, head
	}
	addr, err := ParseTarget(target)
	if err != nil {
		return false
	}
	for _, f := range v.Frontends {
		sameProtocol := protocol == "" || protocol == FrontendOf(f).Protocol
		if f.Addr.Unmap() == addr.Addr() && f.Port == addr.Port() && sameProtocol {
			return true
		}
	}
	return false
}

// checkFrontend refuses addresses that would take traffic away from the host itself.
func checkFrontend(f bpf.Frontend) error {
	a := f.Addr
	if !plain(a) || a.IsLoopback() || a.Is6() && a.IsLinkLocalUnicast() {
		return fmt.Errorf("frontend address %s cannot be a virtual IP: choose a unicast address, neither loopback nor link-local", a)
	}
	if f.Protocol != bpf.ProtocolAny && f.Protocol != bpf.ProtocolTCP && f.Protocol != bpf.ProtocolUDP {
		return fmt.Errorf("frontend %s: protocol %s is not supported: use tcp, udp or any", a, f.Protocol)
	}
	return nil
}

func checkBackend(a netip.AddrPort) error {
	if !plain(a.Addr()) {
		return fmt.Errorf("backend address %s is no unicast address: give one that sandboxes reach", a.Addr())
	}
	return nil
}

func plain(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && a.Zone() == "" && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}
