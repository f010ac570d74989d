"""An import-linter contract that says what a package *may* import of ours, instead of what it may not.

The built-in ``forbidden`` contract lists what is not allowed, so a new package is allowed until somebody remembers to
forbid it, and it refuses to run while a listed package does not exist yet. Here the list is the permission: everything
else of ours is refused, whether it exists today or is written tomorrow.
"""

from __future__ import annotations

from typing import Any

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output
from typing_extensions import override


def _inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


class MayImportContract(Contract):
    """Modules of ``package`` import, of our root packages, only ``package`` itself and those in ``may_import``.

    ``apart_from`` names parts of ``package`` that have a permission of their own in another contract.
    Only direct imports are looked at: each allowed package is bound by its own contract, so chains need no second look.
    A package without modules keeps the contract.
    """

    type_name = "may_import"

    package = fields.StringField()
    may_import = fields.ListField(subfield=fields.StringField())
    apart_from = fields.ListField(subfield=fields.StringField(), required=False)

    @override
    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Collect the direct imports that no entry permits."""
        roots: list[str] = self.session_options["root_packages"]
        package = str(self.package)
        permitted = [package, *_strings(self.may_import)]
        elsewhere = _strings(self.apart_from)
        refused: list[tuple[str, str, int]] = []
        for importer in sorted(graph.modules):
            if not _inside(importer, package) or any(_inside(importer, part) for part in elsewhere):
                continue
            for imported in sorted(graph.find_modules_directly_imported_by(importer)):
                ours = any(_inside(imported, root) for root in roots)
                if ours and not any(_inside(imported, allowed) for allowed in permitted):
                    details = graph.get_import_details(importer=importer, imported=imported)
                    refused.extend((importer, imported, detail["line_number"]) for detail in details)
        return ContractCheck(kept=not refused, metadata={"refused": refused})

    @override
    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print one line for each refused import."""
        for importer, imported, line in check.metadata["refused"]:
            output.print_error(f"- {importer} imports {imported} (l.{line})", bold=False)
        output.print(f"{self.package} may import only: {', '.join(_strings(self.may_import)) or 'nothing of ours'}.")


class LeavesContract(Contract):
    """No module outside a child of ``package`` imports that child: not the other children, nor any root package."""

    type_name = "leaves"

    package = fields.StringField()

    @override
    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Collect the imports of a leaf that come from outside it."""
        package = str(self.package)
        refused: list[tuple[str, str, int]] = []
        for imported in sorted(module for module in graph.modules if _inside(module, package)):
            leaf = ".".join(imported.split(".")[: package.count(".") + 2])
            for importer in sorted(graph.find_modules_that_directly_import(imported)):
                if not _inside(importer, leaf):
                    details = graph.get_import_details(importer=importer, imported=imported)
                    refused.extend((importer, imported, detail["line_number"]) for detail in details)
        return ContractCheck(kept=not refused, metadata={"refused": refused})

    @override
    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print one line for each refused import."""
        for importer, imported, line in check.metadata["refused"]:
            output.print_error(f"- {importer} imports {imported} (l.{line})", bold=False)
        output.print(f"Each module in {self.package} is a leaf: nothing imports it.")


def _strings(value: Any) -> list[str]:
    # import-linter's fields are descriptors to a type checker and plain values at run time.
    return [str(item) for item in value or ()]
