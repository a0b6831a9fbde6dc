// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"

	"github.com/mustang-net/mustang/nft"
)

// rules make a VIP by DNAT, in the namespace of a plain host.
type rules struct {
	host        sandbox
	vip, server netip.Addr
	masquerade  bool   // where replies would go straight from the server to the client, past the host
	via         string // what is set now
	n           int
}

// set makes the VIP the last of n services, each a rule of its own.
func (r *rules) set(via string, n int) error {
	if r.via == via && r.n == n {
		return nil
	}
	err := r.host.do(func() error {
		if r.via == viaIptables {
			if err := restore("*nat\nCOMMIT\n"); err != nil {
				return err
			}
		}
		if via == viaIptables {
			return errors.Join(dropTable(r.via), restore(r.iptables(n)))
		}
		return r.nftables(n)
	})
	if err != nil {
		return fmt.Errorf("set %d DNAT rules by %s: %w", n, via, err)
	}
	r.via, r.n = via, n
	return shortenConntrack(r.host)
}

// other is the i-th of the services that nobody asks for.
func other(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 97, byte(i >> 8), byte(i)})
}

// vips are those of n services; the last is the one that is measured, as rules are tried in their order.
func (r *rules) vips(n int) []netip.Addr {
	var out []netip.Addr
	for i := range n - 1 {
		out = append(out, other(i))
	}
	return append(out, r.vip)
}

// iptables are the rules as iptables-restore reads them.
func (r *rules) iptables(n int) string {
	var b strings.Builder
	b.WriteString("*nat\n")
	for _, vip := range r.vips(n) {
		fmt.Fprintf(&b, "-A PREROUTING -d %s/32 -j DNAT --to-destination %s\n", vip, r.server)
	}
	if r.masquerade {
		fmt.Fprintf(&b, "-A POSTROUTING -s %s -d %s -j MASQUERADE\n", subnet, subnet)
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// iptablesRestore is only measured against; mustang itself runs no such program.
const iptablesRestore = "iptables-restore"

func restore(table string) error {
	cmd := exec.Command(iptablesRestore)
	cmd.Stdin = strings.NewReader(table)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", iptablesRestore, err, out)
	}
	return nil
}

// nftables sets the rules in a table of their own.
func (r *rules) nftables(n int) error {
	if err := dropTable(r.via); err != nil {
		return err
	}
	p := nft.Plain{VIPs: r.vips(n), Backend: r.server}
	if r.masquerade {
		p.Masquerade = subnet
	}
	return p.Set()
}

// dropTable removes the rules that nftables set, if it was that which set any.
func dropTable(via string) error {
	if via != viaNftables {
		return nil
	}
	return nft.RemovePlain()
}
