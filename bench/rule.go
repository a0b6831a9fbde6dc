// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
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

// batch is how many rules go to the kernel at once; all would not fit into a socket's buffer.
const batch = 100

var table = &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "mustang_bench"}

// nftables sets the rules in a table of their own.
func (r *rules) nftables(n int) error {
	if err := dropTable(r.via); err != nil {
		return err
	}
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	conn.AddTable(table)
	dnat := conn.AddChain(&nftables.Chain{
		Name: "prerouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	snat := conn.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	if r.masquerade {
		within := append(match(offsetSource, subnet), match(offsetDestination, subnet)...)
		conn.AddRule(&nftables.Rule{Table: table, Chain: snat, Exprs: append(within, &expr.Masq{})})
	}
	for i, vip := range r.vips(n) {
		conn.AddRule(&nftables.Rule{Table: table, Chain: dnat, Exprs: append(
			match(offsetDestination, netip.PrefixFrom(vip, 32)),
			&expr.Immediate{Register: 1, Data: r.server.AsSlice()},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
		)})
		if i%batch == batch-1 {
			if err := conn.Flush(); err != nil {
				return err
			}
		}
	}
	return conn.Flush()
}

// dropTable removes the rules that nftables set, if it was that which set any.
func dropTable(via string) error {
	if via != viaNftables {
		return nil
	}
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	conn.DelTable(table)
	return conn.Flush()
}

// Offsets in an IPv4 header.
const (
	offsetSource      = 12
	offsetDestination = 16
)

// match compares an address of the packet with a prefix.
func match(offset uint32, p netip.Prefix) []expr.Any {
	load := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4}
	compare := &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()}
	if p.IsSingleIP() {
		return []expr.Any{load, compare}
	}
	mask := net.CIDRMask(p.Bits(), p.Addr().BitLen())
	return []expr.Any{load, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)}, compare}
}
