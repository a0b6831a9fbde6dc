// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/miekg/dns"
)

// Lookup asks the engine's resolver in a sandbox for the addresses of a name, of IPv6 or IPv4. A name that it answers
// without any is no error.
func Lookup(ctx context.Context, network Network, s Sandbox, name string, v6 bool) ([]netip.Addr, error) {
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
	if v6 {
		q.Question[0].Qtype = dns.TypeAAAA
	}
	conn, err := network.Dial(ctx, s, "tcp") // many addresses are more than a datagram takes
	if err != nil {
		return nil, fmt.Errorf("ask the engine's resolver in netns %s: %w", s.Key, err)
	}
	defer conn.Close()
	query, err := q.Pack()
	if err != nil {
		return nil, fmt.Errorf("ask for the name %q: %w", name, err)
	}
	raw, err := exchange(ctx, stream{&dns.Conn{Conn: conn}}, query)
	reply := new(dns.Msg)
	if err == nil {
		err = reply.Unpack(raw)
	}
	if err == nil && reply.Rcode != dns.RcodeSuccess && reply.Rcode != dns.RcodeNameError {
		err = errors.New(dns.RcodeToString[reply.Rcode])
	}
	if err != nil {
		return nil, fmt.Errorf("ask the engine's resolver in netns %s for %s: %w", s.Key, name, err)
	}
	var out []netip.Addr
	for _, record := range reply.Answer {
		switch r := record.(type) {
		case *dns.A:
			if a, ok := netip.AddrFromSlice(r.A); ok {
				out = append(out, a.Unmap())
			}
		case *dns.AAAA:
			if a, ok := netip.AddrFromSlice(r.AAAA); ok {
				out = append(out, a)
			}
		}
	}
	return out, nil
}
