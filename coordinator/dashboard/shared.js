// What every part of the page uses.
export const $ = (id) => document.getElementById(id);

// Sent with every call once the server has asked for it. Kept for this tab only.
export const key = {
  get value() { return sessionStorage.getItem("key") || ""; },
  headers() { return this.value ? { authorization: `Bearer ${this.value}` } : {}; },
  ask() { $("key-row").hidden = false; },
};

// The server's own words about what is wrong, or the status if it has none.
export async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}
