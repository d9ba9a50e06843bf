// A reviewer in a real browser. Told what to do next by lines on standard input, tells what it saw by lines of JSON.
// Arguments: share URL, folder for screenshots. Not here: who revokes the link.
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';

const require = createRequire(process.env.ENVFORGE_TEST_BROWSER_DIR + '/');
const { chromium } = require('playwright-core');
const { AxeBuilder } = require('@axe-core/playwright');
const [shareUrl, shots] = process.argv.slice(2);

const say = (event, more = {}) => console.log(JSON.stringify({ event, ...more }));
const told = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

// How our own pages look on a phone and in the dark: what sticks out of the window, and how well text stands out.
const DESK = { width: 1200, height: 800 };
const VIEWS = [
  { name: 'phone', size: { width: 360, height: 740 }, scheme: 'light' },
  { name: 'phone-dark', size: { width: 360, height: 740 }, scheme: 'dark' },
  { name: 'desk-dark', size: DESK, scheme: 'dark' },
];
const looks = async (page, what) => {
  const seen = [];
  for (const { name, size, scheme } of VIEWS) {
    await page.setViewportSize(size);
    await page.emulateMedia({ colorScheme: scheme });
    await page.screenshot({ path: `${shots}/${what}-${name}.png` });
    const measured = await page.evaluate(() => {
      const light = (color) => {
        const parts = color.match(/[\d.]+/g).slice(0, 3).map((part) => Number(part) / 255);
        const linear = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
      };
      const ground = light(getComputedStyle(document.querySelector('main')).backgroundColor);
      const contrasts = [...document.querySelectorAll('h1, p:not(.spoken), dt, dd, li')].map((element) => {
        const ink = light(getComputedStyle(element).color);
        return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
      });
      const sticksOut = [...document.querySelectorAll('main, main *:not(.spoken)')].filter((element) => {
        const box = element.getBoundingClientRect();
        return box.width > 0 && (box.right > innerWidth + 0.5 || box.left < -0.5);
      });
      return {
        overflow: document.documentElement.scrollWidth - innerWidth,
        sticksOut: sticksOut.map((element) => element.tagName),
        contrast: Math.min(...contrasts),
        ground,
      };
    });
    seen.push({ page: what, view: name, scheme, ...measured });
  }
  await page.setViewportSize(DESK);
  await page.emulateMedia({ colorScheme: null });
  return seen;
};

// What axe finds wrong with a page as it stands, in light and dark colours.
const axe = async (page) => {
  const found = [];
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme });
    // In the page itself: axe's other way opens one more.
    const { violations, passes } = await new AxeBuilder({ page }).setLegacyMode().analyze();
    if (!passes.some((rule) => rule.id === 'color-contrast')) found.push(`${colorScheme}: contrasts were not looked at`);
    for (const { id, help, nodes } of violations) {
      found.push(`${colorScheme}: ${id}: ${help}: ${nodes.map((node) => node.html).join(' ')}`);
    }
  }
  await page.emulateMedia({ colorScheme: null });
  return found;
};

const browser = await chromium.launch({
  executablePath: process.env.ENVFORGE_TEST_CHROMIUM,
  args: ['--no-sandbox', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});
try {
  const context = await browser.newContext({ viewport: DESK });
  const page = await context.newPage();
  const failures = [];
  page.on('pageerror', (error) => failures.push(String(error)));

  await page.goto(shareUrl);
  const share = await page.innerText('main');
  await page.screenshot({ path: `${shots}/1-share.png` });
  const before = await context.cookies();
  say('share', { text: share, cookies: before.length, axe: await axe(page) });
  const views = await looks(page, 'share');

  // The waking page goes on to the app by itself; it is looked at before it hears that it may.
  let heard;
  const looked = new Promise((resolve) => (heard = resolve));
  await page.route('**/.envforge/wake**', async (route) => {
    await looked;
    // The page may be gone by then.
    await route.continue().catch(() => {});
  });
  await page.click('form button');
  await page.waitForSelector('li[data-stage]');
  await page.screenshot({ path: `${shots}/2-waking.png` });
  const waking = { text: await page.innerText('main'), axe: await axe(page) };
  views.push(...(await looks(page, 'waking')));
  say('opened', { url: page.url(), ...waking });
  heard();

  await page.waitForSelector('#live[data-state="open"]', { timeout: 60_000 });
  await page.waitForFunction(() => document.querySelector('#figure-open').textContent !== '–');
  await page.fill('#words', 'across the gateway');
  await page.click('#echo button');
  await page.waitForSelector('#echoes li');
  await page.screenshot({ path: `${shots}/3-app.png` });
  const seen = await page.evaluate(async () => ({
    orders: (await (await fetch('/api/orders')).json()).orders?.length ?? -1,
    style: (await fetch('/assets/board.css')).status,
    echo: document.querySelector('#echoes').innerText,
    cookie: document.cookie,
    socket: document.querySelector('#live').dataset.state,
  }));
  say('app', { ...seen, url: page.url(), failures });

  await told.next(); // the link is being revoked now
  const revoked = Date.now();
  await page.waitForFunction(() => document.querySelector('#live')?.dataset.state !== 'open', null, { timeout: 5_000 });
  const socketMs = Date.now() - revoked;
  const api = await page.evaluate(async () => {
    const answer = await fetch('/api/orders');
    return { status: answer.status, type: answer.headers.get('content-type'), body: await answer.json(), redirected: answer.redirected };
  });
  await page.reload();
  await page.screenshot({ path: `${shots}/4-ended.png` });
  say('revoked', { socketMs, api, text: await page.innerText('main'), axe: await axe(page) });

  views.push(...(await looks(page, 'ended')));
  say('looks', { views });

  const again = await context.newPage();
  await again.goto(shareUrl);
  const buttons = await again.locator('form button').count();
  say('share-again', { text: await again.innerText('main'), buttons, axe: await axe(again) });
} finally {
  await browser.close();
}
