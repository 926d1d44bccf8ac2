"""Make the shipped sample from the public data set Online Retail II.

Run as `python -m tillpact.sample.build LINES PRODUCTS`: LINES is the whole data set as Parquet
or CSV (invoice, stock_code, quantity, invoice_date, price, customer_id, country), PRODUCTS the
stock codes with their usual text (stock_code, description). Needed only to make the sample
again; see README.md beside this file.
"""

import sys
from pathlib import Path

import pandas as pd

FOLDER = Path(__file__).parent
TRADE_QUANTITY = 12


def brand_of(lines: pd.DataFrame) -> "pd.Series[str]":
    """The brand of every customer, by the rule in README.md.

    Args:
        lines: Invoice lines with a customer.

    Returns:
        Brand name by customer id.
    """
    country = lines.groupby("customer_id")["country"].first().astype(str)
    sold = lines[(lines["quantity"] > 0) & ~lines["invoice"].str.startswith("C")]
    first = sold.sort_values(["invoice_date", "invoice"]).groupby("customer_id")["invoice"].first()
    opening = sold.merge(first.reset_index(), on=["customer_id", "invoice"])
    usual = opening.groupby("customer_id")["quantity"].median().reindex(country.index)
    brand = pd.Series("lane", index=country.index)
    brand[(country == "United Kingdom") & (usual >= TRADE_QUANTITY)] = "depot"
    brand[country != "United Kingdom"] = "harbour"
    brand[country == "Germany"] = "kontor"
    brand[country == "France"] = "maison"
    return brand


def build(lines_path: Path, products_path: Path, folder: Path) -> None:
    """Write one Parquet file a brand, and the catalogue."""
    lines = _read(lines_path).dropna(subset=["customer_id"])
    lines["country"] = lines["country"].astype(str)
    brand = lines["customer_id"].map(brand_of(lines))
    columns = ["invoice", "stock_code", "quantity", "invoice_date", "price", "customer_id"]
    for name, part in lines.groupby(brand):
        ordered = part.sort_values(["invoice_date", "invoice", "stock_code"])[columns]
        ordered = ordered.astype({"invoice_date": "datetime64[s]", "price": "float32"})
        _write(ordered, folder / f"{name}.parquet")
    products = _read(products_path)[["stock_code", "description"]].dropna()
    products = products[products["stock_code"].str.match(r"\d{5}")]
    products["description"] = products["description"].str.strip()
    _write(products.sort_values("stock_code"), folder / "products.parquet")


def _read(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)


def _write(frame: pd.DataFrame, path: Path) -> None:
    frame.reset_index(drop=True).to_parquet(path, compression="zstd", compression_level=19)


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]), FOLDER)
